//! overlay-membership-soak: one row of the membership figures per call; `cargo lab soak membership` starts it.

use overlay_tests::figures;
use overlay_tests::membership::ROWS;
use std::process::ExitCode;

fn main() -> ExitCode {
    figures::program(ROWS)
}
