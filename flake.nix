{
  description = "meshnode: several machines, one OpenAI endpoint";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
      ];
      each = build: nixpkgs.lib.genAttrs systems (system: build nixpkgs.legacyPackages.${system});
      tools = pkgs: [
        pkgs.python311
        pkgs.cmake
        pkgs.ninja
        pkgs.stdenv.cc
      ];
      # py-libp2p and some of what it needs are not in nixpkgs. So the program is installed by pip
      # from this source, once for each version of it, into the user's cache, with the
      # interpreter and the compiler from nixpkgs.
      meshnode =
        pkgs:
        pkgs.writeShellApplication {
          name = "meshnode";
          runtimeInputs = tools pkgs;
          text = ''
            home="''${XDG_CACHE_HOME:-$HOME/.cache}/meshnode/nix/${baseNameOf self.outPath}"
            if [ ! -x "$home/ready" ]; then
              python3 -m venv "$home"
              echo "installing meshnode; llama.cpp is compiled once, about 5 minutes" >&2
              source=$(mktemp -d)
              cp -r ${self.outPath}/. "$source"
              chmod -R u+w "$source"
              "$home/bin/pip" install --quiet "$source"
              rm -r "$source"
              install -m 755 /dev/null "$home/ready"
            fi
            exec "$home/bin/meshnode" "$@"
          '';
        };
    in
    {
      packages = each (pkgs: {
        default = meshnode pkgs;
      });

      apps = each (pkgs: {
        default = {
          type = "app";
          program = "${meshnode pkgs}/bin/meshnode";
        };
      });

      devShells = each (pkgs: {
        default = pkgs.mkShell { packages = tools pkgs; };
      });
    };
}
