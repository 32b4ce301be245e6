"""The cost model: one module per term of design equation ``step = scalable + comm + sampling + host - hidden``.

Pure functions of numbers: scalars or arrays that broadcast, SI units, no I/O, no state. The page
on which the terms are added is :mod:`tpplanner.cost.step_time`.
"""
