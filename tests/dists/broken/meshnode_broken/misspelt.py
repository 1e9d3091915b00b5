from p2p_mesh.hookspecs import hookimpl

meshnode_api = 1


@hookimpl
def meshnode_bakcends() -> list[object]:
    return []
