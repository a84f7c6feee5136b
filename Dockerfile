# One image for every verb: `docker run roundelay dns --help`.
ARG NODE_IMAGE=node:26-bookworm-slim

FROM ${NODE_IMAGE} AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# The workspace is left out: the image does not use its Node. Optional packages are installed, since koffi's
# binary is one. Files that a running program never reads are left out of the layer.
RUN npm ci --omit=dev --workspaces=false --ignore-scripts --no-audit --no-fund \
  && find node_modules -type f \( -name '*.md' -o -name '*.d.ts' -o -name '*.d.mts' -o -name '*.map' \) -delete \
  && find node_modules -type d \( -name test -o -name tests -o -name example -o -name examples -o -name docs -o -name benchmarks -o -name .github \) -prune -exec rm -rf {} + \
  && find node_modules/koffi -type f ! -name '*.js' ! -name '*.cjs' ! -name package.json ! -name 'LICENSE*' -delete \
  && rm -f node_modules/.package-lock.json

FROM ${NODE_IMAGE} AS program
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY package.json LICENSE ./
COPY src src
# Node caches each file without its types, and as V8 compiles it. The cache is filled here, since a container
# with a read-only root cannot do it. Node keeps a cache for each user id, so the user that will read it fills
# it.
ENV NODE_COMPILE_CACHE=/app/.cache
RUN install -d -o node -g node .cache
USER node
RUN node --input-type=module -e \
    "for (const file of (await import('node:fs')).globSync('src/*/**/*.ts')) await import('/app/' + file)" \
  && node src/cli.ts --version

FROM ${NODE_IMAGE}
LABEL org.opencontainers.image.title="Roundelay" \
  org.opencontainers.image.description="A farm of TCP/UDP echo servers that take turns behind their own authoritative DNS server" \
  org.opencontainers.image.version="0.1.0" \
  org.opencontainers.image.licenses="MIT"
WORKDIR /app
COPY --from=program /app .
ENV NODE_COMPILE_CACHE=/app/.cache
USER node
EXPOSE 7007/tcp 7007/udp 5300/tcp 5300/udp 8080/tcp
# Replica and DNS server have their admin port here. Other verbs end before the first check.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --start-interval=500ms --retries=2 \
  CMD ["node", "--disable-sigusr1", "/app/src/cli.ts", "check", "http://127.0.0.1:8080/readyz"]
ENTRYPOINT ["node", "--disable-sigusr1", "/app/src/cli.ts"]
