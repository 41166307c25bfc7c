FROM rust:1.95-bookworm AS build
WORKDIR /build

# The dependencies are a layer of their own: they are built around an empty program, which the real one then
# replaces, so that a change of the code does not build them again. The targets of every Cargo.toml have to exist.
COPY Cargo.toml Cargo.lock ./
COPY sandbox/Cargo.toml sandbox/Cargo.toml
COPY clients/rust/Cargo.toml clients/rust/Cargo.toml
COPY examples/clinic/Cargo.toml examples/clinic/Cargo.toml
COPY benches benches
COPY tests/it/main.rs tests/it/main.rs
RUN mkdir src sandbox/src clients/rust/src examples/clinic/src \
    && touch src/lib.rs sandbox/src/lib.rs clients/rust/src/lib.rs examples/clinic/src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --no-default-features --features otel --bin preheat

COPY migrations migrations
COPY src src
# What was copied is older than what was just built; cargo goes by that.
# Without `preheat demo`: a worker needs nothing that starts servers.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked --no-default-features --features otel --bin preheat

FROM debian:bookworm-slim
# The group has the number of the user, which Kubernetes and compose files name.
RUN groupadd --system --gid 65532 preheat \
    && useradd --system --uid 65532 --gid 65532 --no-create-home --shell /usr/sbin/nologin preheat
COPY --from=build /build/target/release/preheat /usr/local/bin/preheat
# Mount your own over them.
COPY preheat.toml /etc/preheat/preheat.toml
COPY jobs /etc/preheat/jobs

ENV PREHEAT_CONFIG=/etc/preheat/preheat.toml \
    PREHEAT_JOBS=/etc/preheat/jobs \
    PREHEAT_HTTP__LISTEN=0.0.0.0:9464
USER 65532:65532
WORKDIR /etc/preheat
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["preheat", "health"]
ENTRYPOINT ["preheat"]
CMD ["serve"]
