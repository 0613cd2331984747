"""The YAML files that ship with the library; installed as `jepa_wm.configs`."""
