//! Amounts of money, exact.
//!
//! The ledger counts USD with up to twelve decimals (`numeric(38,12)` in SQL);
//! on the wire an amount is a string. Nothing here computes what something
//! costs: SQL does, this only carries, reads and shows.

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Decimals that the ledger keeps.
const LEDGER_DECIMALS: u32 = 12;

/// An amount of US dollars; a price is one too, per million tokens.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(transparent)]
pub struct Usd(Decimal);

/// Why a text is not an amount of money.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UsdError {
    /// Not a decimal number.
    #[error("\"{0}\" is not an amount of money. Write dollars with a point, such as 0.25.")]
    NotANumber(String),
    /// Finer than the ledger keeps.
    #[error("\"{0}\" has more than 12 decimals. The ledger keeps 12.")]
    TooFine(String),
    /// Below zero.
    #[error("\"{0}\" is below zero.")]
    Negative(String),
}

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(Decimal::ZERO);

    /// Wraps a decimal number of dollars.
    pub const fn from_decimal(amount: Decimal) -> Self {
        Self(amount)
    }

    /// Returns the decimal number of dollars.
    pub const fn as_decimal(&self) -> Decimal {
        self.0
    }

    /// Says whether nothing is owed or owned.
    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Usd {
    type Err = UsdError;

    /// Reads what a person wrote: `0.25` or `$0.25`, not below zero.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim();
        let digits = digits.strip_prefix('$').unwrap_or(digits);
        let amount = Decimal::from_str_exact(digits)
            .map_err(|_error| UsdError::NotANumber(text.to_owned()))?;
        if amount.normalize().scale() > LEDGER_DECIMALS {
            return Err(UsdError::TooFine(text.to_owned()));
        }
        if amount.is_sign_negative() && !amount.is_zero() {
            return Err(UsdError::Negative(text.to_owned()));
        }
        Ok(Self(amount))
    }
}

impl fmt::Display for Usd {
    /// Writes `$0.0000125`: all digits that matter, at least two decimals.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut amount = self.0.normalize();
        if amount.scale() < 2 {
            amount.rescale(2);
        }
        let sign = if amount.is_sign_negative() && !amount.is_zero() { "-" } else { "" };
        formatter.pad(&format!("{sign}${}", amount.abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_with_the_digits_that_matter() {
        let shown = |text: &str| Usd(text.parse().unwrap()).to_string();
        assert_eq!(shown("0"), "$0.00");
        assert_eq!(shown("12"), "$12.00");
        assert_eq!(shown("0.000012500000"), "$0.0000125");
        assert_eq!(shown("-3.5"), "-$3.50");
    }

    #[test]
    fn amounts_on_the_wire_are_strings() {
        let amount: Usd = serde_json::from_str("\"0.000012500000\"").unwrap();
        assert_eq!(amount.to_string(), "$0.0000125");
        assert_eq!(serde_json::to_string(&amount).unwrap(), "\"0.000012500000\"");
    }

    #[test]
    fn what_a_person_writes_is_checked() {
        assert_eq!("$0.25".parse::<Usd>().unwrap().to_string(), "$0.25");
        assert!(matches!("ten".parse::<Usd>(), Err(UsdError::NotANumber(_))));
        assert!(matches!("-1".parse::<Usd>(), Err(UsdError::Negative(_))));
        assert!(matches!("0.0000000000001".parse::<Usd>(), Err(UsdError::TooFine(_))));
    }
}
