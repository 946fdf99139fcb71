from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split
from vitrail.evaluate import Evaluation, evaluate, score
from vitrail.settings import Preprocessing

PREPROCESSING = Preprocessing(img_size=(8, 6), in_channels=1, mean=(0.3,), std=(0.4,))
CLASSES = ("a", "b", "c")


class Fixed(Split):
    """Random images in memory; `bad` ones can no longer be read."""

    def __init__(self, count: int, *, size: tuple[int, int] = (8, 6), bad: Sequence[int] = ()) -> None:
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randint(0, 256, (count, 1, *size), dtype=torch.uint8, generator=generator)
        sizes = torch.tensor(size).repeat(count, 1)
        names = [f"{i}.png" for i in range(count)]
        super().__init__(labels=torch.arange(count) % 3, sizes=sizes, names=names)
        self.bad = bad

    def read(self, indexes: Tensor, *, boxes: Tensor | None = None) -> tuple[RawBatch, tuple[Skipped, ...]]:
        failures = tuple(Skipped(self.names[i], "gone") for i in indexes.tolist() if i in self.bad)
        kept = torch.tensor([i for i in indexes.tolist() if i not in self.bad], dtype=torch.long)
        sizes = self.sizes[kept]
        whole = torch.cat((torch.zeros_like(sizes), sizes), 1).float() if boxes is None else boxes
        return RawBatch(images=self.images[kept], sizes=sizes, boxes=whole, labels=self.labels[kept], indexes=kept), failures


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3))


def run(model: nn.Module, split: Split, batch_size: int = 4, dtype: torch.dtype | None = None) -> Evaluation:
    return evaluate(
        model, split, preprocessing=PREPROCESSING, classes=CLASSES, batch_size=batch_size, device="cpu", autocast_dtype=dtype
    )


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_every_image_once_at_any_batch_size(batch_size: int) -> None:
    model, split = small_model(), Fixed(25)
    result = run(model, split, batch_size)
    with torch.no_grad():
        expected = score(model.eval()(normalise(split.images, PREPROCESSING)), split.labels, classes=CLASSES)
    assert result.count == 25
    assert torch.equal(result.confusion, expected.confusion)
    assert result.nll == pytest.approx(expected.nll, rel=1e-5)
    assert result.classes == CLASSES


def test_the_model_is_left_as_it_was() -> None:
    model = small_model().train()
    model[0].eval()  # frozen, as one does when fine-tuning
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, Fixed(9))
    assert model.training
    assert not model[0].training
    assert model[2].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model.eval()
    run(model, Fixed(9))
    assert not any(module.training for module in model.modules())


def test_the_mode_comes_back_after_an_error() -> None:
    model = small_model().train()
    with pytest.raises(ValueError, match="8x6"):
        run(model, Fixed(3, size=(9, 9)))
    assert model.training


def test_no_gradient_and_the_asked_for_type() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 3)

        def forward(self, images: Tensor) -> Tensor:
            seen.append(self.head(images.flatten(1)))
            return seen[-1]

    run(Spy(), Fixed(3), dtype=torch.bfloat16)
    run(Spy(), Fixed(3))
    assert [logits.dtype for logits in seen] == [torch.bfloat16, torch.float32]
    assert not any(logits.requires_grad for logits in seen)


def test_an_image_that_went_away_is_left_out_of_the_count() -> None:
    split = Fixed(10, bad=(2, 4, 5, 6, 7))
    result = run(small_model(), split, batch_size=4)  # the second batch has none left
    assert result.count == 5
    assert {item.path for item in split.skipped} == {f"{i}.png" for i in split.bad}


def test_an_empty_split_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match="no images to evaluate"):
        run(small_model(), Fixed(0))
