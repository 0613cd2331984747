"""Simulators behind one protocol, the frozen tasks and their success rules, and scripted
policies."""
