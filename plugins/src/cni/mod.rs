//! The CNI plugin (Container Network Interface specification, 0.3.0 to 1.1.0).
//!
//! One call: the parameters come in the environment, the network configuration on standard input, and the result or the error
//! goes to standard output as JSON. The daemon owns addresses, links and routes of the host; the container's end is configured
//! here, where the rights for it are.

mod attachment;
mod command;
mod config;
mod environment;
mod error;
mod inspect;
mod labels;
mod names;
mod ports;
mod result;

use std::io::Read;

pub use command::SUPPORTED;
pub use error::CniError;

use config::NetworkConfig;
use environment::Environment;

/// The longest network configuration read, in bytes.
const LONGEST_INPUT: u64 = 1 << 20;

/// What goes to standard output, and whether the call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// JSON, or nothing where the specification wants nothing.
    pub text: String,
    /// The exit code is not zero.
    pub failed: bool,
}

/// Carries out one call. `variable` looks up the environment.
pub fn answer(variable: &dyn Fn(&str) -> Option<String>, input: &mut dyn Read) -> Answer {
    let mut bytes = Vec::new();
    let read = input.take(LONGEST_INPUT + 1).read_to_end(&mut bytes);
    let version = config::version_of(&bytes);
    let result = (|| {
        let verb = variable("CNI_COMMAND").unwrap_or_default();
        if verb == "VERSION" {
            // Engines ask with placeholders for everything else, and with any body.
            return Ok(command::version(&version));
        }
        read.map_err(|error| CniError::new(error::IO, "standard input could not be read", error.to_string()))?;
        if bytes.len() as u64 > LONGEST_INPUT {
            let why = format!("it has more than {LONGEST_INPUT} bytes");
            return Err(CniError::new(error::DECODE, "the network configuration is too long", why));
        }
        let config = NetworkConfig::parse(&bytes)?;
        let environment = Environment::read(variable)?;
        command::run(&verb, &config, &environment)
    })();
    match result {
        Ok(text) => Answer { text, failed: false },
        Err(error) => Answer { text: error.to_json(&version), failed: true },
    }
}

#[cfg(test)]
mod tests;
