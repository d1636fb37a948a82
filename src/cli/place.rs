//! Where a model runs.

use std::{fmt, str::FromStr};

/// `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// On the host.
    #[default]
    Cpu,
    /// On the CUDA device of this number.
    Cuda(usize),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => "0",
            _ => text.strip_prefix("cuda:").unwrap_or(""),
        };
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|_| digits).map(Self::Cuda);
        number.ok_or_else(|| "expected cpu, cuda or cuda:N".to_owned())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Loads the model that the arguments name where they say, and evaluates the body with it: the same code
/// for a model on the host and on a device.
macro_rules! with_model {
    ($args:expr, |$loaded:ident| $body:expr) => {
        match $args.device {
            $crate::cli::place::Place::Cpu => {
                let $loaded = $args.load()?;
                $body
            }
            #[cfg(feature = "cuda")]
            $crate::cli::place::Place::Cuda(number) => {
                let $loaded = $args.load_on(number)?;
                $body
            }
            #[cfg(not(feature = "cuda"))]
            place @ $crate::cli::place::Place::Cuda(_) => {
                Err($crate::cli::error::CliError::NoCuda(place.to_string()))
            }
        }
    };
}
pub(super) use with_model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_that_there_can_be() {
        for place in [Place::Cpu, Place::Cuda(0), Place::Cuda(7)] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert_eq!("cuda".parse(), Ok(Place::Cuda(0)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x", "CPU", "cuda0", "cuda: 1"]
        {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
