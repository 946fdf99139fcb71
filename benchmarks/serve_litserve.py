"""A run behind LitServe, with batches of the same size: `serve.py` starts it as PYTHON serve_litserve.py RUN PORT."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import litserve
from PIL import Image

from vitrail.deploy import Predictor


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Base64 in JSON to predictions."""

    def setup(self, device: str) -> None:
        """Load the run, in the process that computes."""
        self.predictor = Predictor(sys.argv[1])

    def decode_request(self, request: dict[str, str]) -> Image.Image:
        """Open an image."""
        return Image.open(io.BytesIO(base64.b64decode(request["image"])))

    def predict(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """Predict a batch."""
        return [one.to_dict() for one in self.predictor.predict(images)]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return a prediction as it is."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=32, batch_timeout=0.002), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
