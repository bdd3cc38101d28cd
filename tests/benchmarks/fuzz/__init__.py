"""Damages small artefacts of every kind by a seed and uses them: python -m tests.benchmarks.fuzz --mutations 2000"""
