"""Any order of events, with and without a step in flight (style.md, Tests, 4)."""

import pytest
from driving import Driver, asks, check_empty, configs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tpplanner.errors import WorkloadError
from tpplanner.serving.scheduler import Scheduler
from tpplanner.serving.sequence import Sequence, Status


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, grow, stop and are called off; the books of :class:`Driver` are right after every event."""

    in_flight = False

    @initialize(config=configs())
    def start(self, config):
        self.driver = Driver(Scheduler(config), self.in_flight)

    @rule(ask=asks())
    def add(self, ask):
        scheduler, number = self.driver.scheduler, len(self.driver.outputs)
        keys = ask.keys(number, scheduler.config.kv_block_size_tok)
        sequence = Sequence(number, prompt_tok=ask.prompt_tok, max_tokens=ask.max_tokens, keys=keys)
        if ask.prompt_tok + ask.max_tokens <= scheduler.longest_tok:
            self.driver.add(sequence, ask.output_tok)
        else:
            with pytest.raises(WorkloadError, match="must fit into"):
                scheduler.add(sequence)

    @rule()
    def turn(self):
        self.driver.turn()

    @rule(most=st.integers(1, 30))
    def turn_and_repeat(self, most):
        """As a simulator does it: before the commit without a step in flight, after the commit of the one before with."""
        driver = self.driver
        step = driver.schedule()
        if driver.flights and (len(driver.flights) > 1 or step is None):
            driver.commit()
        if step is not None:
            driver.fast_forward(most)
            if not driver.in_flight:
                driver.commit()

    @precondition(lambda self: self.driver.live)
    @rule(data=st.data())
    def turn_with_a_stop(self, data):
        """One that samples a token in the step that is committed stops with it, if there is any."""
        self.driver.turn(frozenset([data.draw(st.sampled_from(self.driver.live))]))

    @precondition(lambda self: self.driver.live)
    @rule(data=st.data())
    def abort(self, data):
        sequence = data.draw(st.sampled_from(self.driver.live))
        self.driver.scheduler.abort(sequence)
        assert sequence.status is Status.DONE

    @precondition(lambda self: self.driver.live)
    @rule(data=st.data())
    def turn_with_an_abort_in_the_middle(self, data):
        """Called off while the step runs that was just picked, and perhaps the one before."""
        driver = self.driver
        step = driver.schedule()
        driver.scheduler.abort(data.draw(st.sampled_from(driver.live)))
        driver.check()
        if driver.flights and (len(driver.flights) > 1 or step is None or not driver.in_flight):
            driver.commit()

    @invariant()
    def books_agree(self):
        if hasattr(self, "driver"):
            self.driver.check()

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        driver.drain()
        check_empty(driver)
        assert all(driver.tokens[s] <= driver.outputs[s] for s in driver.outputs)
        first_starts = [s.request_id for s in driver.started]
        assert first_starts == sorted(first_starts)


class OverlappedMachine(SchedulerMachine):
    in_flight = True


TestInTurn = SchedulerMachine.TestCase
TestInTurn.settings = settings(max_examples=150, stateful_step_count=40)
TestOverlapped = OverlappedMachine.TestCase
TestOverlapped.settings = settings(max_examples=150, stateful_step_count=40)
