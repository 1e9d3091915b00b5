from p2p_mesh.core.offers import Offering, Take, offer, then


class Offers:
    def __init__(self) -> None:
        self.takers: list[Take[int]] = []

    def offer(self, take: Take[int]) -> None:
        self.takers.append(take)


def test_who_offers_is_told_who_takes() -> None:
    items = Offers()
    assert isinstance(items, Offering)
    offer(items, bool)
    assert items.takers == [bool]


def test_who_offers_nothing_is_left_alone() -> None:
    offer(iter([1]), bool)


def test_what_is_taken_is_told_of_and_what_is_not_is_not() -> None:
    told: list[int] = []
    take = then(lambda item: item > 1, told.append)
    assert [take(item) for item in (1, 2, 3)] == [False, True, True]
    assert told == [2, 3]
