# docker buildx bake           builds the image for this platform
# docker buildx bake release   builds it for both platforms, with SBOM and provenance. This needs a builder that
#                              supports them (docker buildx create --use) and a registry: set REGISTRY, as in
#                              REGISTRY=registry.example.com/me/ docker buildx bake release --push

variable "VERSION" {
  default = "0.1.0"
}

variable "REGISTRY" {
  default = ""
}

# Bake also reads docker-compose.yml, whose services would be the default group.
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
