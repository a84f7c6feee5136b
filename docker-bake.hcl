# docker buildx bake           the image for this platform
# docker buildx bake release   for both platforms, with SBOM and provenance; it needs a builder that can do them
#                              (docker buildx create --use) and a registry: REGISTRY=ghcr.io/me/ … --push

variable "VERSION" {
  default = "0.1.0"
}

variable "REGISTRY" {
  default = ""
}

# A group, since bake also reads docker-compose.yml, whose services are a group of this name.
group "default" {
  targets = ["image"]
}

target "image" {
  context = "."
  tags    = ["${REGISTRY}roundelay:${VERSION}", "${REGISTRY}roundelay:latest"]
}

target "release" {
  inherits  = ["image"]
  platforms = ["linux/amd64", "linux/arm64"]
  attest    = ["type=sbom", "type=provenance,mode=max"]
}
