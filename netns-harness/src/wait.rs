//! Waiting for a condition; the only place of the harness that sleeps.

use std::time::{Duration, Instant};

/// How long one poll waits before it asks again.
const POLL: Duration = Duration::from_millis(15);

/// The condition did not come true in time.
#[derive(Debug)]
pub struct WaitError {
    what: String,
    waited: Duration,
}

impl std::fmt::Display for WaitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "waited {:.1} s for {}, and it did not happen", self.waited.as_secs_f64(), self.what)
    }
}

impl std::error::Error for WaitError {}

/// Polls until the condition gives a value, and returns how long that took beside the value.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<(T, Duration), WaitError> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok((value, start.elapsed()));
        }
        if start.elapsed() >= timeout {
            return Err(WaitError { what: what.to_owned(), waited: start.elapsed() });
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_that_comes_true_returns_its_value() {
        let mut polls = 0;
        let (value, _) = wait_for("the third poll", Duration::from_secs(5), || {
            polls += 1;
            (polls == 3).then_some(polls)
        })
        .unwrap();
        assert_eq!(value, 3);
    }

    #[test]
    fn condition_that_never_comes_true_is_named_in_the_error() {
        let error = wait_for::<()>("a miracle", Duration::ZERO, || None).unwrap_err();
        assert!(error.to_string().contains("a miracle"), "{error}");
    }
}
