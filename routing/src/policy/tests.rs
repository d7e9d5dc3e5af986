use super::*;

const NOW: u64 = 1_800_000_000;

fn policy(revision: u64, document: &PolicyDocument) -> ClusterPolicy {
    raw(revision, &document.emit().expect("short"))
}

fn raw(revision: u64, text: &str) -> ClusterPolicy {
    let hash = [text.bytes().fold(0, u8::wrapping_add); 32];
    ClusterPolicy { revision, hash, author: HostId([7; 16]), text: text.to_owned() }
}

fn rules(text: &str) -> Option<String> {
    Some(format!("{text}\n"))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Puts in force what should be, as a host does that can.
fn take(tracker: &mut PolicyTracker, now: Instant) {
    if let Some(rules) = tracker.poll_rules() {
        tracker.settled(rules, Ok(()), now);
    }
}

/// A tracker with revision 1, `default open`, for good.
fn with_first(now: Instant) -> PolicyTracker {
    let mut tracker = PolicyTracker::default();
    let draft = tracker.draft(PolicyMade::Applied, rules("default open"), None, NOW);
    tracker.handle_policy(policy(1, &draft), NOW, now);
    take(&mut tracker, now);
    tracker
}

fn in_force(tracker: &PolicyTracker) -> (u64, Option<&str>) {
    tracker.in_force().map_or((0, None), |rules| (rules.revision, rules.text.as_deref()))
}

fn outcome(tracker: &PolicyTracker) -> Option<PolicyOutcome> {
    tracker.status().map(|status| status.outcome)
}

#[test]
fn newest_counts_once_it_is_in_force() {
    let now = Instant::now();
    let mut tracker = PolicyTracker::default();
    assert_eq!((tracker.status(), tracker.poll_rules()), (None, None));
    let draft = tracker.draft(PolicyMade::Applied, rules("default deny"), None, NOW);
    tracker.handle_policy(policy(4, &draft), NOW, now);
    assert_eq!(tracker.status(), None, "it is still being tried");
    take(&mut tracker, now);
    assert_eq!(in_force(&tracker), (4, Some("default deny\n")));
    assert_eq!(outcome(&tracker), Some(PolicyOutcome::Applied));
    let draft = tracker.draft(PolicyMade::Applied, rules("default open"), None, NOW);
    tracker.handle_policy(policy(3, &draft), NOW, now);
    assert_eq!(tracker.poll_rules(), None, "older ones change nothing");
}

#[test]
fn trial_lapses_by_the_own_clock_and_a_confirmation_keeps_it() {
    let now = Instant::now();
    for confirmed in [false, true] {
        let mut tracker = with_first(now);
        let draft = tracker.draft(PolicyMade::Applied, rules("default deny"), Some(60), NOW);
        tracker.handle_policy(policy(2, &draft), NOW, now);
        take(&mut tracker, now);
        assert_eq!(in_force(&tracker), (2, Some("default deny\n")));
        assert_eq!(tracker.poll_timeout(), Some(now + seconds(60)));
        if confirmed {
            let draft = tracker.draft(PolicyMade::Confirmed(2), rules("default deny"), None, NOW);
            tracker.handle_policy(policy(3, &draft), NOW + 30, now + seconds(30));
            take(&mut tracker, now);
        }
        assert!(!tracker.handle_timeout(NOW + 59, now + seconds(59)));
        assert_eq!(tracker.handle_timeout(NOW + 60, now + seconds(60)), !confirmed);
        take(&mut tracker, now + seconds(60));
        if confirmed {
            assert_eq!(
                (in_force(&tracker), outcome(&tracker)),
                ((3, Some("default deny\n")), Some(PolicyOutcome::Applied))
            );
        } else {
            assert_eq!(
                (in_force(&tracker), outcome(&tracker)),
                ((1, Some("default open\n")), Some(PolicyOutcome::Lapsed))
            );
            assert_eq!(tracker.poll_timeout(), None);
        }
    }
}

#[test]
fn host_that_was_away_goes_back_to_rules_it_never_saw_and_tries_nothing_old() {
    let now = Instant::now();
    let draft = with_first(now).draft(PolicyMade::Applied, rules("default deny"), Some(60), NOW);
    // (how late, what is tried, what is in force in the end)
    for (late, tried) in [(100, true), (60 + 299, true), (60 + 300, false), (100_000, false)] {
        let mut tracker = PolicyTracker::default();
        tracker.handle_policy(policy(2, &draft), NOW + late, now);
        assert_eq!(!tracker.has_lapsed(), tried, "{late} seconds late");
        assert!(tracker.poll_timeout().is_none_or(|at| at <= now + seconds(60)));
        tracker.handle_timeout(NOW + late + 60, now + seconds(60));
        take(&mut tracker, now);
        assert_eq!((in_force(&tracker), outcome(&tracker)), ((1, Some("default open\n")), Some(PolicyOutcome::Lapsed)));
    }
    // A clock that is behind does not make it longer.
    let mut tracker = PolicyTracker::default();
    tracker.handle_policy(policy(2, &draft), NOW - 1_000_000, now);
    assert_eq!(tracker.poll_timeout(), Some(now + seconds(60)));
}

#[test]
fn trial_of_the_first_policy_goes_back_to_none() {
    let now = Instant::now();
    let mut tracker = PolicyTracker::default();
    let draft = tracker.draft(PolicyMade::Applied, rules("default deny"), Some(5), NOW);
    tracker.handle_policy(policy(1, &draft), NOW, now);
    take(&mut tracker, now);
    assert!(tracker.handle_timeout(NOW + 5, now + seconds(5)));
    take(&mut tracker, now);
    assert_eq!((in_force(&tracker), outcome(&tracker)), ((0, None), Some(PolicyOutcome::Lapsed)));
}

#[test]
fn trial_after_a_trial_goes_back_to_what_was_proven() {
    let now = Instant::now();
    let mut tracker = with_first(now);
    for revision in [2, 3] {
        let draft = tracker.draft(PolicyMade::Applied, rules(&format!("default deny # {revision}")), Some(10), NOW);
        tracker.handle_policy(policy(revision, &draft), NOW, now);
        take(&mut tracker, now);
        assert_eq!(in_force(&tracker).0, revision);
    }
    tracker.handle_timeout(NOW + 10, now + seconds(10));
    take(&mut tracker, now);
    assert_eq!(in_force(&tracker), (1, Some("default open\n")));
    // Also where the one before has lapsed already.
    let draft = tracker.draft(PolicyMade::Applied, rules("default members"), Some(10), NOW);
    assert_eq!(draft.trial.and_then(|trial| trial.previous).map(|previous| previous.revision), Some(1));
}

#[test]
fn what_cannot_be_read_or_installed_leaves_the_old_one() {
    let now = Instant::now();
    for text in
        ["overlay policy 2\nzone dmz\n\n", "default open\n", "overlay policy 1\nmade apply\nrules 7\n\npermit\n"]
    {
        let mut tracker = with_first(now);
        tracker.handle_policy(raw(2, text), NOW, now);
        assert_eq!(tracker.poll_rules(), None, "{text:?}");
        let status = tracker.status().expect("it says so");
        assert_eq!((status.revision, status.outcome), (2, PolicyOutcome::Refused));
        assert!(!status.reason.is_empty());
        assert_eq!(in_force(&tracker), (1, Some("default open\n")));
        // The next good one counts.
        let draft = tracker.draft(PolicyMade::Applied, rules("default deny"), None, NOW);
        tracker.handle_policy(policy(3, &draft), NOW, now);
        take(&mut tracker, now);
        assert_eq!((in_force(&tracker).0, outcome(&tracker)), (3, Some(PolicyOutcome::Applied)));
    }
    let mut tracker = with_first(now);
    let draft = tracker.draft(PolicyMade::Applied, rules("default deny"), None, NOW);
    tracker.handle_policy(policy(2, &draft), NOW, now);
    let wanted = tracker.poll_rules().expect("readable");
    tracker.settled(wanted.clone(), Err(PolicyRefusal::System("no memory".to_owned())), now);
    assert_eq!((tracker.poll_rules(), outcome(&tracker)), (None, Some(PolicyOutcome::Refused)));
    assert_eq!(in_force(&tracker).0, 1);
    tracker.handle_timeout(NOW + 30, now + seconds(30));
    assert_eq!(tracker.poll_rules(), Some(wanted), "it is tried again");
    take(&mut tracker, now);
    assert_eq!((in_force(&tracker).0, outcome(&tracker)), (2, Some(PolicyOutcome::Applied)));
}

#[test]
fn lapse_into_rules_that_cannot_be_read_takes_the_own_last_ones() {
    let now = Instant::now();
    let mut tracker = with_first(now);
    let previous = Some(PreviousPolicy { revision: 2, rules: "zone dmz\n".to_owned() });
    let trial = Some(PolicyTrial { seconds: 10, written: NOW, previous });
    let document = PolicyDocument { made: PolicyMade::Applied, rules: rules("default deny"), trial };
    tracker.handle_policy(policy(3, &document), NOW, now);
    take(&mut tracker, now);
    assert_eq!(in_force(&tracker).0, 3);
    tracker.handle_timeout(NOW + 10, now + seconds(10));
    take(&mut tracker, now);
    assert_eq!((in_force(&tracker), outcome(&tracker)), ((1, Some("default open\n")), Some(PolicyOutcome::Refused)));
}

#[test]
fn restart_keeps_rules_history_and_what_is_left_of_a_trial() {
    let now = Instant::now();
    let mut tracker = with_first(now);
    let draft = tracker.draft(PolicyMade::Applied, rules("default deny"), Some(60), NOW);
    tracker.handle_policy(policy(2, &draft), NOW, now);
    take(&mut tracker, now);
    let saved = tracker.save();
    let later = now + seconds(1000);
    // (how long it was down, what is left)
    for (down, left) in [(0, 60), (20, 40), (60, 0), (5000, 0)] {
        let mut again = PolicyTracker::restore(saved.clone(), NOW + down, later);
        assert_eq!(again.save().history, saved.history);
        assert_eq!(in_force(&again).0, 2, "before its clock is asked");
        assert_eq!(again.poll_timeout(), Some(later + seconds(left)));
        assert_eq!(again.handle_timeout(NOW + down, later), left == 0);
        take(&mut again, later);
        assert_eq!(in_force(&again).0, if left == 0 { 1 } else { 2 });
    }
    tracker.handle_timeout(NOW + 60, now + seconds(60));
    take(&mut tracker, now);
    let again = PolicyTracker::restore(tracker.save(), NOW, later);
    assert!(again.has_lapsed() && again.poll_rules().is_none());
    assert_eq!(outcome(&again), Some(PolicyOutcome::Lapsed));
}

#[test]
fn history_is_bounded_and_of_two_texts_of_one_revision_the_one_that_counts() {
    let now = Instant::now();
    let mut tracker = PolicyTracker::default();
    for revision in 1..=40 {
        let draft = tracker.draft(PolicyMade::Applied, rules(&format!("default deny # {revision}")), None, NOW);
        tracker.handle_policy(policy(revision, &draft), NOW, now);
    }
    let revisions: Vec<u64> = tracker.history().iter().map(|past| past.revision).collect();
    assert_eq!(revisions, (25..=40).collect::<Vec<u64>>());
    let draft = tracker.draft(PolicyMade::Applied, rules("default open"), None, NOW);
    let mut other = policy(40, &draft);
    other.hash = [255; 32];
    tracker.handle_policy(other, NOW, now);
    assert_eq!(tracker.history().len(), HISTORY);
    assert_eq!(tracker.history().last().and_then(|past| past.rules.as_deref()), Some("default open\n"));
}

#[test]
fn writers_take_over_what_is_settled_alike_and_no_trial() {
    let now = Instant::now();
    let mut tracker = with_first(now);
    let adopted = PolicyDocument { made: PolicyMade::Confirmed(1), rules: rules("default open"), trial: None };
    assert_eq!(tracker.adoption(), Some(adopted));
    let draft = tracker.draft(PolicyMade::Applied, rules("default deny"), Some(60), NOW);
    tracker.handle_policy(policy(2, &draft), NOW, now);
    assert_eq!(tracker.adoption(), None);
    tracker.handle_timeout(NOW + 60, now + seconds(60));
    let adopted = PolicyDocument { made: PolicyMade::RolledBack(1), rules: rules("default open"), trial: None };
    assert_eq!(tracker.adoption(), Some(adopted));
}
