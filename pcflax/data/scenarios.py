"""Continual learning: one labeled data set as several, the tasks that a network learns in a row.

A task is an ordinary data set with its `classes`, so that training, evaluation and checkpoints know nothing
of tasks. Class-incremental tasks differ in their classes (`split`), domain-incremental ones in their images
(`permuted`, `rotated`). Next file to read: `pcflax/experiments/tasks.py`, which learns them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pcflax.checks import expect_count, expect_kind, expect_number, expect_seed

from .arrays import ArrayDataset


def split(
    data: ArrayDataset,
    tasks: int | Iterable[Sequence[int]],
    *,
    seed: int | None = None,
    blur: float = 0.0,
) -> tuple[ArrayDataset, ...]:
    """Return a data set for each task, with the examples of its classes; targets stay as wide as they were.

    Split training and test data alike. Each data set has the name, and so the order of examples, that
    `data.only(classes)` has.

    Args:
        data: labeled, and held in arrays.
        tasks: the classes of each, such as [(0, 1), (2, 3)]; or how many tasks all classes make, equally
            many in each.
        seed: draws the classes of so many tasks; in the order of their labels unless given.
        blur: the share of each task's examples that are instead dealt out to the other tasks, from 0 to 1.
            Which ones is drawn by the data's seed. A task's `classes` stay those of the other examples.

    Raises:
        TypeError: for data that are not held in arrays, and tasks that are no classes.
        ValueError: for data without labels, no task, one with no examples or fewer than a batch, classes
            that do not divide among the tasks, or fewer than two tasks to blur.

    Source: van de Ven & Tolias (2019), arXiv 1904.07734, for the kinds of tasks; Bang et al. (2021), CVPR,
    for tasks without sharp boundaries.

    >>> import pcflax as pc
    >>> train = pc.data.scenarios.split(pc.data.load("digits"), tasks=5)
    >>> [task.classes for task in train], [task.num_examples for task in train][:2]
    ([(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)], [294, 288])
    >>> train[1].name, train[1].num_classes
    ('digits/train of 2, 3', 10)
    """
    _expect_arrays("split", data)
    tasks = _given_tasks(tasks) if isinstance(tasks, Iterable) else _equal_tasks(data, tasks, seed)
    blur = expect_number("split", "blur", blur, least=0, most=1)
    if not blur:
        found = [data.only(classes) for classes in tasks]
    else:
        told = f", blurred by {blur:g}"
        found = [
            data.take(rows, f"{data.name} of {', '.join(map(str, classes))}{told}", classes)
            for rows, classes in zip(_blurred(data, tasks, blur), tasks, strict=True)
        ]
    most = max(task.num_examples for task in found)
    for task in found:
        task.least_rows = most
    return tuple(found)


def permuted(data: ArrayDataset, num_tasks: int, *, seed: int = 0) -> tuple[ArrayDataset, ...]:
    """Return a data set for each task, with the pixels of all images in another order; the first as stored.

    A pixel keeps its channels. Give training and test data one seed. Augmentation comes after.

    Args:
        data: held in arrays, with one array of images or rows of features.
        num_tasks: how many.
        seed: draws the orders.

    Raises:
        TypeError: for data that are not held in arrays, or have several inputs, masked ones or none.
        ValueError: for fewer than one task.

    Source: Goodfellow et al. (2013), arXiv 1312.6211.

    >>> import numpy as np, pcflax as pc
    >>> rows = np.arange(6.0).reshape(2, 3)
    >>> data = pc.data.from_arrays(rows, np.array([0, 1]), batch_size=2, shuffle=False)
    >>> [next(iter(task)).inputs[1].tolist() for task in pc.data.scenarios.permuted(data, 2, seed=1)]
    [[3.0, 4.0, 5.0], [5.0, 3.0, 4.0]]
    """
    images = _expect_images("permuted", data)
    num_tasks = expect_count("permuted", "num_tasks", num_tasks, least=1)
    seed = expect_seed("permuted", seed)
    shape, found = images.shape, [data]
    pixels = shape[1:3] if images.ndim > 3 else shape[1:]
    for task in range(1, num_tasks):
        order = np.random.RandomState([seed, task]).permutation(int(np.prod(pixels)))

        def change(images: np.ndarray, order: np.ndarray = order) -> np.ndarray:
            flat = images.reshape(len(images), len(order), -1)
            return flat[:, order].reshape(images.shape)

        found.append(data.with_images(change, f"{data.name}, permuted by {seed}, {task}"))
    return tuple(found)


def rotated(data: ArrayDataset, degrees: Iterable[float]) -> tuple[ArrayDataset, ...]:
    """Return a data set for each task, with all images turned; many small turns are a slow drift.

    Args:
        data: held in arrays, with images (height, width, channels) as stored.
        degrees: of each task, counterclockwise. Values between pixels are interpolated linearly, and what
            comes in at the corners is 0.

    Raises:
        TypeError: for data that are not held in arrays, or have several inputs, masked ones or none.
        ValueError: for inputs that are no images.

    Source: Lopez-Paz & Ranzato (2017), NeurIPS 30.

    >>> import pcflax as pc
    >>> tasks = pc.data.scenarios.rotated(pc.data.load("digits"), [0, 90])
    >>> before, after = (task.inputs[0, :, :, 0] for task in tasks)
    >>> bool((after[0] == before[:, -1]).all()), tasks[1].name  # the right side is on top
    (True, 'digits/train, rotated by 90')
    """
    images = _expect_images("rotated", data)
    if images.ndim != 4:
        raise ValueError(
            f"rotated expected images (examples, height, width, channels) in '{data.name}', got shape "
            f"{images.shape}; give them their axes (flatten=True flattens afterwards)"
        )
    from scipy import ndimage  # which nothing else here needs

    found = []
    for angle in degrees:
        angle = expect_number("rotated", "degrees", angle)

        def change(images: np.ndarray, angle: float = angle) -> np.ndarray:
            narrow = jnp.issubdtype(images.dtype, np.floating) and images.dtype.itemsize < 4
            known = images.astype(np.float32) if narrow else images  # scipy knows no 16 bits
            turned = ndimage.rotate(known, angle, axes=(1, 2), reshape=False, order=1)
            return turned.astype(images.dtype, copy=False)

        told = f"{data.name}, rotated by {angle:g}"
        found.append(data.with_images(change, told) if angle else data)
    return tuple(found)


def _expect_arrays(owner: str, data: Any) -> None:
    expect_kind(owner, "data", data, ArrayDataset, "pc.data.load('mnist', stream=False)")


def _expect_images(owner: str, data: Any) -> np.ndarray:
    """Return the stored images, of which there is one array."""
    _expect_arrays(owner, data)
    return expect_kind(owner, "one array of images", data.inputs, np.ndarray, "(60000, 28, 28, 1)")


def _blurred(data: ArrayDataset, tasks: list, share: float) -> list[np.ndarray]:
    """Return the rows of each task, a share of which went to the others."""
    if len(tasks) < 2:
        raise ValueError(f"split expected two tasks or more to blur, got {len(tasks)}")
    random = np.random.RandomState([data.seed, len(tasks), 1])  # a stream that no epoch has
    parts: list[list[np.ndarray]] = [[] for _ in tasks]
    for task, classes in enumerate(tasks):
        own = random.permutation(data.rows_of(classes))
        leaving, staying = np.split(own, [round(share * len(own))])
        others = parts[:task] + parts[task + 1 :]
        parts[task].append(staying)
        for other, part in zip(others, np.array_split(leaving, len(others)), strict=True):
            other.append(part)
    return [np.sort(np.concatenate(own)) for own in parts]


def _given_tasks(tasks: Iterable[Any]) -> list[tuple[int, ...]]:
    """Return the classes of each task, in order and once."""
    found = []
    for classes in tasks:
        expect_kind("split", "classes of each task", classes, Iterable, "(0, 1)")
        found.append(tuple(sorted({expect_count("split", "class", one) for one in classes})))
    if not found:
        raise ValueError("split expected the classes of at least one task, got none")
    return found


def _equal_tasks(data: ArrayDataset, tasks: Any, seed: int | None) -> list[tuple[int, ...]]:
    count = expect_count("split", "tasks", tasks, least=1)
    classes = np.array(data.classes, int)
    if not len(classes) or len(classes) % count:
        raise ValueError(
            f"the {len(classes)} classes of '{data.name}' do not divide among {count} tasks; give the "
            f"classes of each, tasks=[(0, 1), (2, 3, 4)]"
        )
    if seed is not None:
        classes = np.random.RandomState(expect_seed("split", seed)).permutation(classes)
    return [tuple(sorted(map(int, own))) for own in np.split(classes, count)]
