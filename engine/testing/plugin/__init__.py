"""`PluginContract`: any plugin, proved.

An author subclasses it, and says how the plugin is made and what it does beyond observing. pytest tries it in stores
with any history that Hypothesis draws, beside the same history without it, in two stores, and across faults, forks and
crashes. The plugin is watched throughout (`watching.py`); a hook that never comes back is a failure, not a test run
that hangs.

    class TestMine(PluginContract):
        plugin = MyPlugin
"""

from .base import PluginChecks
from .conditions import ConditionChecks
from .hooks import HookChecks
from .lifecycle import LifecycleChecks
from .transactions import TransactionChecks


class PluginContract(LifecycleChecks, ConditionChecks, TransactionChecks, HookChecks):
    __doc__ = PluginChecks.__doc__
