//! The checker itself: each kind of violation, planted, is found; what is allowed is not.

use super::{Checker, Loss, OriginLedger};
use crate::content::{GARBAGE, Value, ZEROES};
use crate::violation::Kind;

/// One export of eight units that starts as write 1.
fn checker() -> Checker {
    Checker::new(&[(8, false)])
}

impl Checker {
    fn write(&mut self, first_unit: usize, units: usize) -> u32 {
        let id = self.submit_write(0, first_unit, units, false, false);
        self.answer_write(id);
        id
    }

    fn flush(&mut self) {
        let submitted = self.submit_flush();
        self.answer_flush(Some(0), submitted);
    }

    fn read(&mut self, first_unit: usize, values: &[Value]) -> Option<Kind> {
        let token = self.submit_read();
        self.answer_read(token, 0, first_unit, values).err().map(|violation| violation.kind)
    }

    fn recovered(&mut self, values: [Value; 8]) -> Option<Kind> {
        self.crash();
        match self.check_recovered(vec![values.to_vec()]) {
            Ok(resolution) => {
                self.resolve(&resolution);
                None
            }
            Err(violation) => Some(violation.kind),
        }
    }
}

#[test]
fn a_read_shows_the_last_answered_write() {
    let mut checker = checker();
    assert_eq!(checker.read(0, &[1; 8]), None);
    let second = checker.write(2, 2);
    assert_eq!(checker.read(0, &[1, 1, second, second, 1, 1, 1, 1]), None);
    assert_eq!(checker.read(2, &[1]), Some(Kind::Stale));
}

#[test]
fn a_read_may_show_a_write_in_flight_but_then_it_stays() {
    let mut checker = checker();
    let second = checker.submit_write(0, 0, 1, false, false);
    assert_eq!(checker.read(0, &[1]), None);
    assert_eq!(checker.read(0, &[second]), None);
    assert_eq!(checker.read(0, &[1]), Some(Kind::Stale));
}

#[test]
fn concurrent_writes_have_one_order_for_all_readers() {
    let mut checker = checker();
    let second = checker.submit_write(0, 0, 2, false, false);
    let third = checker.submit_write(0, 0, 2, false, false);
    checker.answer_write(second);
    checker.answer_write(third);
    assert_eq!(checker.read(0, &[second]), None, "either order is possible");
    assert_eq!(checker.read(1, &[third]), Some(Kind::Stale), "but the second came last");
}

#[test]
fn a_read_shows_all_of_a_write_or_nothing() {
    let mut checker = checker();
    let second = checker.submit_write(0, 2, 3, false, false);
    assert_eq!(checker.read(1, &[1, second, second, 1]), Some(Kind::Torn));
    let third = checker.submit_write(0, 2, 3, false, false);
    assert_eq!(checker.read(2, &[second, third]), Some(Kind::Torn));
}

#[test]
fn zeroes_are_writes_like_any_other() {
    let mut checker = checker();
    assert_eq!(checker.read(0, &[ZEROES]), Some(Kind::Stale));
    let trim = checker.submit_write(0, 0, 4, true, false);
    assert_eq!(checker.read(0, &[ZEROES, ZEROES]), None);
    assert_eq!(checker.read(0, &[ZEROES, 1]), Some(Kind::Stale));
    checker.answer_write(trim);
    let second = checker.write(1, 1);
    assert_eq!(checker.read(0, &[ZEROES, second]), None);
    assert_eq!(checker.read(1, &[ZEROES]), Some(Kind::Stale));
}

#[test]
fn garbage_and_foreign_data_are_found() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    assert_eq!(checker.read(3, &[GARBAGE]), Some(Kind::Garbage));
    assert_eq!(checker.read(3, &[77]), Some(Kind::Garbage));
    assert_eq!(checker.read(3, &[second]), Some(Kind::Stale), "it never wrote there");
}

#[test]
fn what_was_flushed_survives_and_the_rest_may() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    checker.flush();
    let third = checker.write(0, 1);
    assert_eq!(checker.clone().recovered([third, 1, 1, 1, 1, 1, 1, 1]), None);
    assert_eq!(checker.clone().recovered([second, 1, 1, 1, 1, 1, 1, 1]), None);
    assert_eq!(checker.clone().recovered([1; 8]), Some(Kind::Lost));
    let mut after = checker.clone();
    assert_eq!(after.recovered([second, 1, 1, 1, 1, 1, 1, 1]), None);
    assert_eq!(after.read(0, &[third]), Some(Kind::Stale), "lost is lost");
}

#[test]
fn a_flush_covers_what_was_answered_before_it_was_sent() {
    let mut checker = checker();
    let second = checker.submit_write(0, 0, 1, false, false);
    let submitted = checker.submit_flush();
    checker.answer_write(second);
    checker.answer_flush(Some(0), submitted);
    assert_eq!(checker.recovered([1; 8]), None);
}

#[test]
fn a_fua_write_survives() {
    let mut checker = checker();
    let second = checker.submit_write(0, 0, 1, false, true);
    assert_eq!(checker.clone().recovered([1; 8]), None);
    checker.answer_write(second);
    assert_eq!(checker.recovered([1; 8]), Some(Kind::Lost));
}

impl Checker {
    fn write_kept(&mut self, first_unit: usize, units: usize) -> u32 {
        let id = self.submit_write(0, first_unit, units, false, false);
        self.history.keep(id);
        self.answer_write(id);
        id
    }

    /// What is wrong with what a start shows after a kill.
    fn after_kill(&self, values: [Value; 8]) -> Option<Kind> {
        self.check_recovered(vec![values.to_vec()]).err().map(|violation| violation.kind)
    }
}

#[test]
fn what_was_answered_to_a_kernel_outlives_the_process() {
    let mut checker = checker();
    let kept = checker.write_kept(0, 1);
    let other = checker.write(1, 1);
    let mut cut = checker.clone();
    assert_eq!(checker.kill(), 1);
    let both = [kept, other, 1, 1, 1, 1, 1, 1];
    let one = [kept, 1, 1, 1, 1, 1, 1, 1];
    assert_eq!(checker.after_kill(both), None);
    assert_eq!(checker.after_kill(one), None, "another client's may be gone");
    assert_eq!(checker.after_kill([1; 8]), Some(Kind::Lost));
    assert_eq!(cut.recovered([1; 8]), None, "a power cut may take it");
}

#[test]
fn a_power_cut_before_the_start_is_over_may_take_what_outlived_the_process() {
    let mut checker = checker();
    // The second covers the first once it is durable, but it is not yet.
    let first = checker.write_kept(0, 1);
    let second = checker.write_kept(0, 1);
    checker.kill();
    assert!(checker.history.counts_on_power());
    assert_eq!(checker.after_kill([first, 1, 1, 1, 1, 1, 1, 1]), Some(Kind::Lost));
    checker.lose_power();
    assert!(!checker.history.counts_on_power());
    for value in [1, first, second] {
        assert_eq!(checker.after_kill([value, 1, 1, 1, 1, 1, 1, 1]), None);
    }
}

#[test]
fn what_outlived_the_process_survives_a_later_power_cut_unread() {
    let mut checker = checker();
    let kept = checker.write_kept(0, 1);
    checker.kill();
    // The start is over, and nobody has looked.
    assert_eq!(checker.clone().read(0, &[1]), Some(Kind::Stale));
    assert_eq!(checker.clone().read(0, &[kept]), None);
    assert_eq!(checker.recovered([1; 8]), Some(Kind::Lost));
}

#[test]
fn a_flush_in_the_next_life_covers_what_outlived_the_process() {
    let mut checker = checker();
    let kept = checker.write_kept(0, 1);
    checker.kill();
    checker.flush();
    let later = checker.write(1, 1);
    let possible: [Vec<Value>; 8] = std::array::from_fn(|_| vec![1]);
    let mut ledger = OriginLedger::new(0, 8, true);
    let found = origin_write(&checker, &mut ledger.clone(), &possible, 1, later);
    assert_eq!(found, Some(Kind::OriginIllegal), "the epoch before is missing");
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 0, kept), None);
}

#[test]
fn damage_after_the_answer_excuses_no_loss_of_what_outlived_the_process() {
    let mut checker = checker();
    let early = checker.write_kept(0, 2);
    let damaged = checker.history.now() + 1;
    let late = checker.write_kept(2, 2);
    checker.kill();
    let loss = Loss::new(checker.history.now(), damaged, [].into());
    let kind = |first, second| {
        let contents = vec![vec![first, first, second, second, 1, 1, 1, 1]];
        let losses = std::slice::from_ref(&loss);
        checker.check_excused(&contents, losses).map_err(|found| found.kind)
    };
    assert_eq!(kind(early, late), Ok(false), "nothing is gone");
    assert_eq!(kind(early, 1), Ok(true), "what the damage took");
    assert_eq!(kind(1, 1), Err(Kind::Lost), "the device had it before the damage");
}

#[test]
fn what_a_restart_has_shown_survives_the_next_crash() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    assert_eq!(checker.recovered([second, 1, 1, 1, 1, 1, 1, 1]), None);
    assert_eq!(checker.recovered([1; 8]), Some(Kind::Lost));
}

#[test]
fn one_read_after_a_restart_decides_for_the_next_crash() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    checker.crash();
    assert_eq!(checker.read(0, &[second]), None);
    assert_eq!(checker.recovered([1; 8]), Some(Kind::Lost));
}

#[test]
fn a_write_of_the_new_life_decides_nothing_about_the_old_one() {
    let mut checker = checker();
    checker.write(0, 1);
    checker.crash();
    let third = checker.write(0, 1);
    assert_eq!(checker.read(0, &[third]), None);
    assert_eq!(checker.recovered([1; 8]), None);
}

#[test]
fn survivors_are_a_prefix_and_whole() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    let third = checker.write(4, 2);
    let both = [second, 1, 1, 1, third, third, 1, 1];
    assert_eq!(checker.clone().recovered(both), None);
    assert_eq!(checker.clone().recovered([1, 1, 1, 1, third, third, 1, 1]), Some(Kind::LogOrder));
    assert_eq!(checker.clone().recovered([second, 1, 1, 1, third, 1, 1, 1]), Some(Kind::Torn));
}

/// An origin that shows these values, all of them durable.
fn origin_write(
    checker: &Checker,
    ledger: &mut OriginLedger,
    possible: &[Vec<Value>; 8],
    unit: usize,
    value: Value,
) -> Option<Kind> {
    let possible = |unit: usize| possible[unit].clone().into_iter();
    let checked = checker.check_origin_write(ledger, unit, &[value], possible);
    checked.err().map(|violation| violation.kind)
}

#[test]
fn an_origin_gets_an_epoch_only_after_the_one_before_it() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    checker.flush();
    let third = checker.write(1, 1);
    let mut possible: [Vec<Value>; 8] = std::array::from_fn(|_| vec![1]);
    let mut ledger = OriginLedger::new(0, 8, true);
    let found = origin_write(&checker, &mut ledger.clone(), &possible, 1, third);
    assert_eq!(found, Some(Kind::OriginIllegal), "the first epoch is missing");
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 0, second), None);
    possible[0].push(second);
    let found = origin_write(&checker, &mut ledger.clone(), &possible, 1, third);
    assert_eq!(found, Some(Kind::OriginIllegal), "it is not flushed");
    possible[0] = vec![second];
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 1, third), None);
    let found = origin_write(&checker, &mut ledger, &possible, 0, 1);
    assert_eq!(found, Some(Kind::OriginIllegal), "an older epoch again");
}

#[test]
fn zeroes_that_can_only_be_of_a_later_epoch_come_after_the_one_before_it() {
    let mut checker = checker();
    let earlier = checker.write(0, 1);
    checker.flush();
    let trim = checker.submit_write(0, 1, 1, true, false);
    let mut possible: [Vec<Value>; 8] = std::array::from_fn(|_| vec![1]);
    let mut ledger = OriginLedger::new(0, 8, true);
    let found = origin_write(&checker, &mut ledger.clone(), &possible, 1, ZEROES);
    assert_eq!(found, Some(Kind::OriginIllegal), "the first epoch is missing");
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 0, earlier), None);
    possible[0] = vec![earlier];
    assert_eq!(origin_write(&checker, &mut ledger.clone(), &possible, 1, ZEROES), None);
    checker.history.lose(trim);
    let found = origin_write(&checker, &mut ledger, &possible, 1, ZEROES);
    assert_eq!(found, Some(Kind::Garbage), "a crash took the trim");
}

#[test]
fn zeroes_prove_the_oldest_write_that_they_may_stand_for() {
    let mut checker = checker();
    let trim = |checker: &mut Checker| {
        let id = checker.submit_write(0, 1, 1, true, false);
        checker.answer_write(id);
    };
    trim(&mut checker);
    let over_it = checker.write(1, 1);
    checker.flush();
    let beside = checker.write(2, 1);
    let epoch = checker.write(0, 1);
    checker.flush();
    trim(&mut checker);
    let mut possible: [Vec<Value>; 8] = std::array::from_fn(|_| vec![1]);
    let mut ledger = OriginLedger::new(0, 8, true);
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 1, ZEROES), None, "the first trim");
    let before = ledger.clone();
    // Now what lies between the two is required: the zeroes are the second's.
    possible[1] = vec![ZEROES];
    let found = origin_write(&checker, &mut ledger, &possible, 2, beside);
    assert_eq!(found, Some(Kind::OriginIllegal), "the second epoch is missing");
    let mut ledger = before;
    possible[1] = vec![over_it];
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 2, beside), None);
    possible[2] = vec![beside];
    let found = origin_write(&checker, &mut ledger.clone(), &possible, 1, ZEROES);
    assert_eq!(found, Some(Kind::OriginIllegal), "the second epoch is missing");
    possible[0] = vec![epoch];
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 1, ZEROES), None);
}

#[test]
fn within_an_epoch_any_order_is_legal_and_relaxed_knows_no_epochs() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    let third = checker.write(1, 1);
    let possible: [Vec<Value>; 8] = std::array::from_fn(|_| vec![1]);
    let mut ledger = OriginLedger::new(0, 8, true);
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 1, third), None);
    assert_eq!(origin_write(&checker, &mut ledger, &possible, 0, second), None);
    checker.flush();
    let fourth = checker.write(2, 1);
    let mut relaxed = OriginLedger::new(0, 8, false);
    assert_eq!(origin_write(&checker, &mut relaxed, &possible, 2, fourth), None);
}

#[test]
fn an_origin_never_gets_foreign_or_lost_data() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    let possible: [Vec<Value>; 8] = std::array::from_fn(|_| vec![1]);
    let mut ledger = OriginLedger::new(0, 8, true);
    let mut give =
        |checker: &Checker, unit, value| origin_write(checker, &mut ledger, &possible, unit, value);
    assert_eq!(give(&checker, 0, GARBAGE), Some(Kind::Garbage));
    assert_eq!(give(&checker, 0, ZEROES), Some(Kind::Garbage));
    assert_eq!(give(&checker, 3, second), Some(Kind::OriginAhead));
    assert_eq!(checker.recovered([1; 8]), None);
    assert_eq!(give(&checker, 0, second), Some(Kind::OriginAhead));
}

#[test]
fn a_drain_leaves_nothing_older_anywhere() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    let before = checker.submit_flush();
    let possible = |values: [Value; 2]| {
        move |unit: usize| if unit == 0 { values.into_iter() } else { [1, 1].into_iter() }
    };
    let caught_up = |values| checker.check_origin_caught_up(0, 0..before, possible(values)).is_ok();
    assert!(caught_up([second, second]));
    assert!(!caught_up([second, 1]), "a power cut could still take it");
    assert!(!caught_up([1, 1]));
}

#[test]
fn a_drained_origin_never_goes_back_in_any_order() {
    let mut checker = checker();
    let second = checker.write(0, 1);
    let third = checker.write(0, 1);
    let before = checker.submit_flush();
    for strict in [true, false] {
        let mut ledger = OriginLedger::new(0, 8, strict);
        let shows =
            |value: Value| move |unit: usize| std::iter::once(if unit == 0 { value } else { 1 });
        assert!(checker.check_origin_now(&ledger, shows(second)).is_ok(), "not drained yet");
        checker.require_drained(&mut ledger, before);
        assert!(checker.check_origin_now(&ledger, shows(third)).is_ok());
        assert!(checker.check_origin_now(&ledger, shows(second)).is_err());
        let possible: [Vec<Value>; 8] = std::array::from_fn(|_| vec![third]);
        let found = origin_write(&checker, &mut ledger, &possible, 0, second);
        assert_eq!(found, Some(Kind::OriginIllegal));
    }
}

#[test]
fn many_writes_of_one_unit_do_not_pile_up() {
    let mut checker = checker();
    for _ in 0..1000 {
        checker.write(0, 1);
        checker.flush();
    }
    assert!(checker.exports[0].candidates[0].len() <= 16);
}

#[test]
fn damage_excuses_only_what_became_durable_after_it() {
    let mut checker = checker();
    let early = checker.submit_write(0, 0, 2, false, true);
    checker.answer_write(early);
    let damaged = checker.history.now() + 1;
    let late = checker.submit_write(0, 2, 2, false, true);
    checker.answer_write(late);
    checker.crash();
    let shows = |first, second| vec![vec![first, first, second, second, 1, 1, 1, 1]];
    let mut loss = Loss::new(checker.history.now(), damaged, [].into());
    let kind = |loss: &Loss, first, second| {
        let losses = std::slice::from_ref(loss);
        checker.check_excused(&shows(first, second), losses).map_err(|found| found.kind)
    };
    assert_eq!(kind(&loss, early, late), Ok(false), "nothing is gone");
    assert_eq!(kind(&loss, early, 1), Ok(true), "what the damage took");
    assert!(checker.check_recovered(shows(early, 1)).is_err(), "without damage it is a loss");
    assert_eq!(kind(&loss, 1, 1), Err(Kind::Lost), "durable before the damage");
    assert_eq!(kind(&loss, late, 1), Err(Kind::Garbage), "another place's data");
    loss.carried = std::iter::once(0..2).collect();
    assert_eq!(kind(&loss, 1, 1), Ok(true), "the only copy had been carried there");
    assert_eq!(kind(&loss, late, 1), Err(Kind::Garbage), "and still it is another place's data");
}

#[test]
fn what_a_loss_took_does_not_come_back() {
    let mut checker = checker();
    checker.write(0, 4);
    checker.flush();
    let damaged = checker.history.now() + 1;
    let taken = checker.submit_write(0, 0, 4, false, true);
    checker.answer_write(taken);
    checker.crash();
    let loss = Loss::new(checker.history.now(), damaged, [].into());
    let before = vec![[[taken - 1; 4], [1; 4]].concat()];
    let excused = |checker: &Checker, contents: &Vec<Vec<Value>>| {
        let losses = std::slice::from_ref(&loss);
        checker.check_excused(contents, losses).map_err(|found| found.kind)
    };
    assert_eq!(excused(&checker, &before), Ok(true));
    let mut torn = before.clone();
    torn[0][0] = taken;
    assert!(checker.clone().outlive(torn).is_none(), "a part of it is left");
    let resolution = checker.outlive(before.clone()).expect("as before the write");
    assert!(resolution.takes(taken));
    checker.resolve(&resolution);
    checker.crash();
    assert!(checker.check_recovered(before).is_ok(), "nothing has changed since");
    let after = vec![[[taken; 4], [1; 4]].concat()];
    assert_eq!(excused(&checker, &after), Err(Kind::Stale), "it is back");
}

#[test]
fn an_origin_can_hide_a_loss_until_its_power_fails() {
    let mut checker = checker();
    let damaged = checker.history.now() + 1;
    // Nobody knows which of the two is the later one.
    let [beside, hidden] = [0; 2].map(|_| checker.submit_write(0, 0, 4, false, true));
    checker.answer_write(beside);
    checker.answer_write(hidden);
    let all = [hidden, hidden, hidden, hidden, 1, 1, 1, 1];
    checker.crash();
    let loss = Loss::new(checker.history.now(), damaged, [].into());
    let resolution = checker.check_recovered(vec![all.to_vec()]).expect("the origin has it");
    checker.resolve(&resolution);
    let later = checker.submit_write(0, 4, 4, false, true);
    checker.answer_write(later);
    checker.crash();
    let kind = |first, second, unflushed| {
        let contents = vec![[[first; 4], [second; 4]].concat()];
        let mut loss = loss.clone();
        loss.hide(&[vec![unflushed; 8]].into());
        checker.check_excused(&contents, &[loss]).map_err(|found| found.kind)
    };
    assert_eq!(kind(hidden, later, true), Ok(false), "nothing is gone");
    assert_eq!(kind(1, later, true), Ok(true), "the log had lost it");
    assert_eq!(kind(beside, later, true), Ok(true), "and the origin has the other");
    assert_eq!(kind(1, later, false), Err(Kind::Lost), "the origin had flushed it");
    assert_eq!(kind(1, 1, true), Err(Kind::Lost), "submitted after the start that found the loss");
}
