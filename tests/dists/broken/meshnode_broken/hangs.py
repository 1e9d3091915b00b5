import trio

from p2p_mesh.hookspecs import Event, hookimpl

meshnode_api = 1


@hookimpl
async def meshnode_event(event: Event) -> None:
    await trio.sleep_forever()
