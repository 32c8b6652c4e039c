"""Traces that are forced through an engine to see whether it agrees with training."""

from __future__ import annotations

QUESTION = "A train leaves at 9:40 and arrives at 12:05. How long does it travel?"

TRACE = """<Think>
The journey can be cut at noon and at ten. Let's think in parallel.
<Parallel>
<Goal>
<Outline>
1: The time from 9:40 to 12:00
</Outline>
<Outline>
2: The time from 12:00 to 12:05
</Outline>
<Outline>
3: A check by minutes of the day
</Outline>
</Goal>
<Path>
1: This part again falls into two.
<Parallel>
<Goal>
<Outline>
1.1: From 9:40 to 10:00
</Outline>
<Outline>
1.2: From 10:00 to 12:00
</Outline>
</Goal>
<Path>
1.1: There are 60 minutes to an hour, so this takes 60 - 40 = 20 minutes.
</Path>
<Path>
1.2: These are two hours.
</Path>
<Conclusion>
Together two hours and 20 minutes.
</Conclusion>
</Parallel>
So the first part is 140 minutes long.
</Path>
<Path>
2: Five minutes.
</Path>
<Path>
3: 9:40 is minute 580 and 12:05 is minute 725. The difference is 725 - 580 = 145 minutes.
</Path>
<Conclusion>
140 + 5 = 145 minutes, and the check agrees.
</Conclusion>
</Parallel>
Now the answer in hours.
<Parallel>
<Goal>
<Outline>
1: Whole hours
</Outline>
<Outline>
2: Minutes that are left
</Outline>
</Goal>
<Path>
1: 145 / 60 is 2 and a rest.
</Path>
<Path>
2: 145 - 120 = 25.
</Path>
<Conclusion>
2 hours and 25 minutes.
</Conclusion>
</Parallel>
</Think>
Answer: 2 hours and 25 minutes
"""
"""Blocks in a row and a block in a path: what a scripted check has to go through."""

SHORT_TRACE = """<Think>
Let's think in parallel.
<Parallel>
<Goal>
<Outline>
1: To noon
</Outline>
<Outline>
2: From noon on
</Outline>
</Goal>
<Path>
1: Two hours and
<Parallel>
<Goal>
<Outline>
1.1: To ten
</Outline>
<Outline>
1.2: The rest
</Outline>
</Goal>
<Path>
1.1: 20 minutes.
</Path>
<Path>
1.2: 2 hours.
</Path>
<Conclusion>
2:20
</Conclusion>
</Parallel>
</Path>
<Path>
2: Five minutes.
</Path>
<Conclusion>
2:25
</Conclusion>
</Parallel>
</Think>
Answer: 2 hours and 25 minutes
"""
"""A block in a path, and no more: the check before an evaluation."""
