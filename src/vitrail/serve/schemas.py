"""Types of the answers, for OpenAPI and clients. The answers are built as plain dicts; tests hold them to these types."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Base of all answers: no field beside those named here."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelVersion(Answer):
    """The model that answered."""

    name: str
    version: str = Field(description="SHA-256 of the weights")


class Score(Answer):
    """A class and its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class PredictionAnswer(Answer):
    """Prediction for one image, or the reason why there is none."""

    path: str = Field(description='name of the uploaded file; "#3" for the fourth image without one')
    label: str | None = Field(description="most probable class")
    probability: float | None = Field(ge=0, le=1)
    top: list[Score] = Field(description="most probable classes, in descending order")
    error: str | None = Field(description="reason for a missing label")
    labels: list[Score] | None = Field(None, description="labels from probability 0.5 on, of a multi-label model")
    outlier: bool | None = Field(None, description="true for an image unlike those of training")
    classes: list[str] | None = Field(None, description="set of classes with the coverage that was asked for")


class PredictAnswer(Answer):
    """Predictions, in the order of the images."""

    model: ModelVersion
    predictions: list[PredictionAnswer]


class EmbeddingAnswer(Answer):
    """Embedding of one image, or the reason why there is none."""

    path: str
    embedding: list[float] | None
    error: str | None


class EmbedAnswer(Answer):
    """Embeddings, in the order of the images."""

    model: ModelVersion
    pool: str
    embeddings: list[EmbeddingAnswer]


class MapAnswer(Answer):
    """One map with its scores."""

    label: str = Field(description="layer, head, query and class, as far as the method has them")
    map: list[list[float]] = Field(description="a number for each patch, row by row")
    colors: list[list[list[float]]] | None = Field(description="red, green and blue of each patch, of the method pca")
    note: str | None
    insertion: float | None
    deletion: float | None
    random_insertion: float | None
    random_deletion: float | None
    shuffled_insertion: float | None
    shuffled_deletion: float | None
    rank_correlation: float | None


class ExplainAnswer(Answer):
    """Maps of one image."""

    model: ModelVersion
    path: str
    method: str
    target: str | None = Field(description="class that is explained; null of a model without a head")
    probability: float | None
    patch: tuple[int, int] = Field(description="height and width of a patch, in pixels")
    size: tuple[int, int] = Field(description="height and width of the image as the model sees it")
    signed: bool = Field(description="true where negative numbers are evidence against the class")
    maps: list[MapAnswer]


class PreprocessingAnswer(Answer):
    """Preprocessing of an image."""

    img_size: tuple[int, int]
    in_channels: int
    mean: list[float]
    std: list[float]
    crop_pct: float
    crop_mode: str
    interpolation: str


class CalibrationAnswer(Answer):
    """Calibration of the probabilities, from the model's card."""

    images: int
    temperature: float
    coverage: bool = Field(description="true where sets of classes can be asked for")
    outliers: bool = Field(description="true where images unlike those of training are marked")


class MethodAnswer(Answer):
    """An explanation method that the model can run."""

    name: str
    shows: str
    options: list[str]
    scored: bool = Field(description="true where insertion and deletion can score its maps")


class ModelAnswer(Answer):
    """All that is known of a model."""

    name: str
    version: str = Field(description="SHA-256 of the weights")
    architecture: str
    task: str
    classes: list[str]
    parameters: int
    preprocessing: PreprocessingAnswer
    calibration: CalibrationAnswer | None
    methods: list[MethodAnswer]
    depth: int | None
    heads: int | None
    grid: tuple[int, int] | None


class LimitsAnswer(Answer):
    """Limits of a request."""

    max_body_bytes: int
    max_images: int
    max_pixels: int
    timeout_s: float


class ModelsAnswer(Answer):
    """The models that are served; the first is the default."""

    models: list[ModelAnswer]
    limits: LimitsAnswer


class HealthAnswer(Answer):
    """State of the server."""

    status: str


class ProblemAnswer(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
