from minigpt.ops.dropout import Rng
from tests.tools.calling import leaves, map_tree


def test_a_tree_is_mapped_to_one_of_the_same_types():
    tree = {"list": [1, (2, 3)], "named": Rng(4, row=5)}
    doubled = map_tree(lambda x: 2 * x, tree)
    assert doubled == {"list": [2, (4, 6)], "named": Rng(8, row=10)}
    assert type(doubled["named"]) is Rng
    assert [value for _, value in leaves(tree)] == [1, 2, 3, 4, 5]
