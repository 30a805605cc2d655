# syntax=docker/dockerfile:1
# One image for every role: `docker run towline bridge`, `… worker --app my.module:setup_worker`, `… relay`, `… scheduler`.
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
RUN python3 -m venv /opt/towline && /opt/towline/bin/python -m pip install --no-cache-dir uv
COPY constraints.txt pyproject.toml README.md ./
COPY contracts contracts
COPY services services
RUN /opt/towline/bin/uv pip install --no-cache --python /opt/towline/bin/python --compile-bytecode \
      --constraint constraints.txt '.[bridge,worker,relay,scheduler,openai]' \
 && /opt/towline/bin/python -m pip uninstall --yes --quiet uv pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="towline" \
      org.opencontainers.image.description="Durable agents behind Kafka: bridge, worker, relay, scheduler" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/towline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TOWLINE_LOG_FORMAT=json
RUN useradd --uid 10001 --create-home --home-dir /app towline && install -d -o towline -g towline /data
COPY --from=build /opt/towline /opt/towline
COPY examples /app/examples
WORKDIR /app
USER 10001:10001
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["towline"]
CMD ["--help"]
