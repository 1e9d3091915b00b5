import trio
import trio.testing

from p2p_mesh.testing.offering import Spring


async def test_only_what_is_awaited_is_offered() -> None:
    spring, taken, read = Spring[int](), list[int](), list[int]()

    def take(item: int) -> bool:
        taken.append(item)
        return item % 2 == 0

    spring.offer(take)
    assert not spring.pour(0)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def reader() -> None:
            read.extend([item async for item in spring])

        await trio.testing.wait_all_tasks_blocked()
        assert spring.pour(2)
        assert not spring.pour(3)
        assert not spring.pour(4)
        spring.pour(None)
    assert (taken, read) == ([2, 3], [0, 3, 4])
