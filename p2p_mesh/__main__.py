"""`python -m p2p_mesh` is `meshnode`."""

from p2p_mesh.cli.main import main

main()
