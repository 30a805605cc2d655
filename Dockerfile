# One image for every role: `docker run towline bridge`, `… worker --app my.module:setup_worker`, `… relay`, `… scheduler`.
# Any builder will do. Python: 3.11, 3.12 or 3.13.
ARG PYTHON_IMAGE=python:3.12-slim

# The dependencies are a layer of their own: a change of our sources neither installs nor ships them again.
FROM ${PYTHON_IMAGE} AS dependencies
WORKDIR /build
# uv has an environment beside ours, so that ours holds nothing that installs.
RUN python3 -m venv /opt/uv && /opt/uv/bin/python -m pip install --no-cache-dir uv \
 && python3 -m venv --without-pip /opt/towline
COPY constraints.txt pyproject.toml ./
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/towline/bin/python --compile-bytecode \
      --constraint constraints.txt --requirements pyproject.toml \
      --extra bridge --extra worker --extra relay --extra scheduler --extra openai --extra payloads-s3

FROM dependencies AS build
COPY README.md LICENSE ./
COPY contracts contracts
COPY services services
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/towline/bin/python --compile-bytecode \
      --no-deps --prefix /opt/package .

FROM ${PYTHON_IMAGE}
ARG REVISION=
LABEL org.opencontainers.image.title="towline" \
      org.opencontainers.image.description="Durable agents behind Kafka: bridge, worker, relay, scheduler" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/towline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TOWLINE_LOG_FORMAT=json
# A new volume takes owner and mode from the folder in the image that it is mounted on.
RUN groupadd --gid 10001 towline \
 && useradd --uid 10001 --gid towline --create-home --home-dir /app --shell /usr/sbin/nologin towline \
 && install -d -o towline -g towline -m 700 /data /secrets /secrets/scheduler-server /secrets/scheduler-client \
      /secrets/relay-server /secrets/relay-client
COPY --from=dependencies /opt/towline /opt/towline
COPY --from=build /opt/package /opt/towline
COPY examples /app/examples
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["towline"]
CMD ["--help"]
