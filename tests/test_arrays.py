"""Arrays are restored bit for bit, a failed save loses nothing, a wrong file is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from utils.run import arrays, files


class Layer(nnx.Module):
    """A linear layer, the smallest module with two parameters."""

    def __init__(self, inputs, outputs, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))


class Net(nnx.Module):
    """Layers as an attribute and in a list."""

    def __init__(self, rngs):
        self.out = Layer(3, 2, rngs)
        self.layers = nnx.List([Layer(4, 3, rngs), Layer(3, 3, rngs)])


def agent_state(seed):
    """A tree of every kind of node: dict, nnx.State, tuple, list."""
    state = nnx.state(Net(nnx.Rngs(seed)))
    return {"params": state, "moments": (jax.tree.map(jnp.ones_like, state), jnp.int32(seed)),
            "range": [jnp.array([-0.0, jnp.inf])]}


def test_a_tree_with_an_nnx_module_is_restored_from_disk_bit_for_bit(tmp_path):
    saved, other = agent_state(1), agent_state(2)
    arrays.save(tmp_path / "agent.npz", arrays.flatten(saved))
    loaded = arrays.unflatten(other, arrays.load(tmp_path / "agent.npz"))
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(saved), strict=True):
        assert isinstance(ours, jax.Array) and ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_the_paths_of_an_nnx_module_are_readable():
    assert sorted(arrays.flatten(nnx.state(Net(nnx.Rngs(0))))) == [
        "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel",
        "out/bias", "out/kernel",
    ]
    names = arrays.flatten(agent_state(0))
    assert "params/out/kernel" in names and "moments/0/layers/1/bias" in names
    assert "moments/1" in names and "range/0" in names


def test_shapes_alone_are_enough_to_restore_a_module():
    module = Net(nnx.Rngs(3))
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    restored = nnx.merge(graph, arrays.unflatten(shapes, arrays.flatten(nnx.state(module))))
    np.testing.assert_array_equal(restored.layers[1].kernel[...], module.layers[1].kernel[...])


@pytest.mark.parametrize("change, message", [
    ({"b": np.zeros((3, 2), np.float32)}, r"'b' is float32\[3, 2\], expected float32\[2, 3\]"),
    ({"b": np.zeros((2, 3), np.float64)}, r"'b' is float64\[2, 3\], expected float32\[2, 3\]"),
    ({"d": np.zeros(1)}, "'d' is not part of the model"),
])
def test_the_first_array_that_does_not_fit_is_named(change, message):
    tree = {"a": jnp.zeros(1), "b": jnp.zeros((2, 3)), "c": jnp.zeros(4)}
    with pytest.raises(ValueError, match=message):
        arrays.unflatten(tree, arrays.flatten(tree) | change)


def test_a_missing_array_is_named():
    tree = {"a": jnp.zeros(1), "b": jnp.zeros(2)}
    with pytest.raises(ValueError, match="'b' is missing"):
        arrays.unflatten(tree, {"a": np.zeros(1, np.float32)})


def test_two_arrays_with_the_same_name_are_refused():
    with pytest.raises(ValueError, match="'a/b'"):
        arrays.flatten({"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}})


def test_any_name_can_be_saved(tmp_path):
    named = {"file": np.arange(3), "allow_pickle": np.array(2.5), "a/b.npy": np.zeros((0, 2))}
    arrays.save(tmp_path / "w.npz", named)
    loaded = arrays.load(tmp_path / "w.npz")
    assert list(loaded) == list(named)
    for name, array in named.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


def test_equal_arrays_give_equal_files(tmp_path):
    for name in ("one.npz", "two.npz"):
        arrays.save(tmp_path / name, {"a": np.arange(3)})
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_a_save_that_fails_midway_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "w.npz"
    arrays.save(path, {"a": np.ones(2)})
    with pytest.raises(ValueError, match="Object arrays"):
        arrays.save(path, {"a": np.zeros(2), "b": np.array([object()])})
    np.testing.assert_array_equal(arrays.load(path)["a"], np.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_complete_and_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    path, events = tmp_path / "w.npz", []
    monkeypatch.setattr(files.os, "fsync", lambda handle: events.append("synced"))
    monkeypatch.setattr(files.os, "replace", lambda source, target: events.append(
        (source.parent, target, arrays.load(source)["a"].tolist())))
    arrays.save(path, {"a": np.arange(3)})
    assert events == ["synced", (tmp_path, path, [0, 1, 2]), "synced"]  # the file, then its name


@pytest.mark.parametrize("damage", ["text", "cut", "flipped", "pickle"])
def test_an_incomplete_archive_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "w.npz"
    arrays.save(path, {"a": np.arange(1000)})
    content = bytearray(path.read_bytes())
    if damage == "text":
        path.write_text("no archive")
    elif damage == "cut":
        path.write_bytes(content[:2000])
    elif damage == "flipped":
        content[2000] ^= 255
        path.write_bytes(content)
    else:
        np.savez(path, a=np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"w\.npz: ") as caught:
        arrays.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"w\.npz"):
        arrays.load(tmp_path / "w.npz")


@pytest.mark.parametrize("seed", range(200))
def test_one_wrong_bit_gives_the_old_numbers_or_one_line(tmp_path, seed):
    path, random = tmp_path / "weights.npz", np.random.default_rng(seed)
    tree = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}
    arrays.save(path, tree)
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << int(random.integers(8))
    path.write_bytes(data)
    try:
        found = arrays.unflatten(tree, arrays.load(path))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all((found[name] == tree[name]).all() for name in tree)
