import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from blocklora.engine.augment import Crops, cut, draw_crops

sides = st.integers(1, 300)


@given(sides, sides, st.integers(0, 10**6))
def test_boxes_lie_within_the_image(height, width, seed):
    sizes = np.array([[height, width]] * 8)
    crops = draw_crops(sizes, (0.08, 1.0), 0.5, np.random.default_rng(seed))
    assert (crops.height >= 1).all()
    assert (crops.width >= 1).all()
    assert (crops.top >= 0).all()
    assert (crops.left >= 0).all()
    assert (crops.top + crops.height <= height).all()
    assert (crops.left + crops.width <= width).all()


@pytest.mark.parametrize("size", [(375, 500), (64, 64), (20, 300), (300, 20)])
def test_boxes_follow_the_distribution_of_torchvision(size):
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    draws = 3000
    image = torch.empty(3, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(draws)]
    )
    crops = draw_crops(np.array([size] * draws), (0.08, 1.0), 0.5, np.random.default_rng(0))
    ours = np.stack([crops.top, crops.left, crops.height, crops.width], 1)
    for measure in (
        *(lambda boxes, column=column: boxes[:, column] for column in range(4)),
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: boxes[:, 2] / boxes[:, 3],
        lambda boxes: boxes[:, 0] + boxes[:, 2] + boxes[:, 1],
    ):
        # Asymptotic p-values are conservative for ties.
        assert ks_2samp(measure(ours), measure(theirs), method="asymp").pvalue > 1e-3
    assert abs(crops.flip.mean() - 0.5) < 0.03


@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.sampled_from([16, 32, 48]),
)
@settings(max_examples=40)
def test_pixels_of_a_box_equal_those_of_pil(seed, shape, size):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (shape[0] // 4 + 2, shape[1] // 4 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
    image = np.asarray(smooth)
    image.setflags(write=False)
    crops = draw_crops(np.array([shape]), (0.3, 1.0), 0.5, generator)
    (found,) = cut([image], crops, size)
    top, left = int(crops.top[0]), int(crops.left[0])
    box = (left, top, left + int(crops.width[0]), top + int(crops.height[0]))
    expected = smooth.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    if crops.flip[0]:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    difference = np.abs(found.numpy().astype(int) - np.asarray(expected).astype(int))
    # PyTorch and Pillow round weights and the picture between the two passes differently.
    assert difference.max() <= 5
    assert (difference > 2).mean() < 0.01
    assert difference.mean() < 0.4


def test_images_of_different_sizes_make_one_batch():
    images = [np.full((20, 30, 3), 7, np.uint8), np.full((32, 32, 3), 200, np.uint8)]
    boxes = Crops(*(np.array(v) for v in ([0, 0], [5, 0], [20, 32], [20, 32], [False, True])))
    batch = cut(images, boxes, 32)
    assert batch.shape == (2, 32, 32, 3)
    assert (batch[0] == 7).all()
    assert (batch[1] == 200).all()
