"""The public tree has the codes of the cluster's own, and a few more."""

import inspect
import pickle

import pytest

import tandemserve
from scheduling import errors as scheduling_errors
from tandemserve import errors

# Found by the SDK itself, or reported by gRPC and proxies.
CLIENT_CODES = {
    "client_closed",
    "connection_failed",
    "limit_exceeded",
    "not_supported",
    "permission_denied",
    "protocol_violation",
    "unauthenticated",
}


def cluster_leaves() -> dict[str, type[scheduling_errors.TandemError]]:
    return {
        value.code: value
        for _, value in inspect.getmembers(scheduling_errors, inspect.isclass)
        if issubclass(value, scheduling_errors.TandemError)
    }


def test_the_sdk_knows_every_code_of_the_cluster() -> None:
    assert set(errors.error_class_by_code()) - CLIENT_CODES == set(cluster_leaves())


@pytest.mark.parametrize("code", sorted(set(cluster_leaves()) - {"internal"}))
def test_both_trees_agree_on_name_and_retryability(code: str) -> None:
    ours, theirs = errors.error_class_by_code()[code], cluster_leaves()[code]
    assert ours.__name__ == theirs.__name__
    assert ours.retryable_by_default == theirs.retryable


def test_every_leaf_has_a_code_of_its_own_and_is_exported() -> None:
    classes = [
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.TandemError)
    ]
    leaves = errors.error_class_by_code()
    assert len(leaves) == len(classes) - 2  # the two roots
    for error_class in classes:
        assert error_class.__name__ in errors.__all__
        assert getattr(tandemserve, error_class.__name__) is error_class


def test_the_drawn_tree_names_every_class() -> None:
    for name in errors.__all__:
        assert name == "error_class_by_code" or name in (errors.__doc__ or "")


def test_an_error_survives_another_process() -> None:
    error = errors.QueueFull("full", retry_after_s=2.0, gpu_work_spent=False, request_id="r")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, errors.QueueFull)
    assert vars(copy) == vars(error)
