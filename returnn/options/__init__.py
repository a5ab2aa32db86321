"""
The config options: one module per section, each the only reader of the options that it declares.

:mod:`returnn.options.registry` holds the declarations, :mod:`returnn.options.sections` imports all sections,
:mod:`returnn.options.check` compares a config with them, :mod:`returnn.options.docs` prints the reference.
"""
