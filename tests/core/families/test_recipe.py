"""What a stage is."""

from p2p_mesh.core.families.recipe import Needs, Recipe, Renamed


def test_a_recipe_knows_which_end_of_the_model_it_is() -> None:
    middle = Recipe(1, 2, 4, (1,), "rows")
    assert (middle.is_first, middle.is_last) == (False, False)
    assert Recipe(0, 2, 4, (0, 1), "rows").is_first
    assert Recipe(2, 4, 4, (2, 3), "rows").is_last


def test_what_is_said_of_a_tensor_is_nothing_unless_it_is_said() -> None:
    one = Renamed("a", "b")
    assert (one.change, one.factor, one.shape, one.otherwise) == ("", 1.0, (), "")


def test_needs_compare_by_what_is_needed() -> None:
    assert Needs((1, 2), True, False) == Needs((1, 2), embeddings=True, output=False)
