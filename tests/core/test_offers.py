from p2p_mesh.core.offers import Offering, Take, offer


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
