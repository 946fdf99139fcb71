"""The HTTP server: models behind `/v1/…`, with dynamic batches, limits, metrics and a page. Needs the extra `serve`."""
