# The outputs of ../../flake.nix over a stub of nixpkgs: every name that the flake itself defines is
# forced. It proves nothing about what nixpkgs really has.
let
  flake = import ../../flake.nix;
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/stub-${name}";
  };
  pkgs = {
    python311 = package "python";
    cmake = package "cmake";
    ninja = package "ninja";
    stdenv.cc = package "cc";
    mkShell = given: package "shell" // { count = builtins.length given.packages; };
    writeShellApplication =
      given: package given.name // { inherit (given) text; count = builtins.length given.runtimeInputs; };
  };
  systems = [
    "x86_64-linux"
    "aarch64-linux"
    "aarch64-darwin"
  ];
  each = value: builtins.listToAttrs (map (name: { inherit name value; }) systems);
  nixpkgs = {
    lib.genAttrs =
      names: make: builtins.listToAttrs (map (name: { inherit name; value = make name; }) names);
    legacyPackages = each pkgs;
  };
  outputs = flake.outputs {
    inherit nixpkgs;
    self.outPath = "/nix/store/stub-source";
  };
in
map (system: {
  script = outputs.packages.${system}.default.text;
  program = outputs.apps.${system}.default.program;
  tools = outputs.devShells.${system}.default.count;
}) systems
