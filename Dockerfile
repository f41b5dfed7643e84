# The agent in an image.
#
#   docker build --tag infernet .                          builds it from source
#   docker build --target prebuilt --tag infernet DIRECTORY -f Dockerfile
#                                                          takes DIRECTORY/infernet as it is
#
# BASE needs glibc 2.36 or newer, libgcc and the certificates of public authorities, and
# nothing else, no shell either; pin it and BUILDER by digest. The embedded control
# plane (`infernet up`) also needs PostgreSQL and is not for this image.
#
# The engines' containers are made by the machine's own Docker, beside this one. So
# folders that both see must have the same path in both:
#
#   docker run --detach --name infernet --restart unless-stopped --network host \
#     --read-only --cap-drop ALL --security-opt no-new-privileges \
#     --user "$(id -u):$(id -g)" --group-add "$(stat -c %g /var/run/docker.sock)" \
#     --volume /var/run/docker.sock:/var/run/docker.sock \
#     --volume /etc/infernet:/etc/infernet \
#     --volume /var/lib/infernet:/var/lib/infernet \
#     --volume /run/infernet:/run/infernet \
#     --volume /var/lib/models:/var/lib/models:ro \
#     infernet
#
# The folders belong to the user that is named, and the keys in /etc/infernet are made
# once with: docker run --rm --interactive --tty (the same) infernet init
#
# Whoever may use Docker's socket is as good as root on the machine, and so is this
# container: it keeps the agent's files together, it does not keep the agent in.
ARG BASE=gcr.io/distroless/cc-debian12:nonroot
ARG BUILDER=docker.io/library/rust:1.95-bookworm

FROM ${BASE} AS base
ENV INFERNET_CONFIG_DIR=/etc/infernet \
    INFERNET_STATE_DIR=/var/lib/infernet \
    INFERNET_RUNTIME_DIR=/run/infernet \
    INFERNET_LOG_FORMAT=json
LABEL org.opencontainers.image.title="Infernet agent" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
USER 65532:65532
# Running jobs may finish first (grace_secs); give `docker stop` more than that.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/infernet"]
CMD ["start", "--foreground"]

FROM base AS prebuilt
COPY infernet /usr/local/bin/infernet

FROM ${BUILDER} AS build
WORKDIR /source
COPY . .
RUN cargo build --locked --release --bin infernet

FROM base
COPY --from=build /source/target/release/infernet /usr/local/bin/infernet
