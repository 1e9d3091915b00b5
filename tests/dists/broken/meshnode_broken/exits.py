import sys

sys.exit("this plugin wants to end the node")
