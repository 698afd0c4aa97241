//! Bits a second, as people write and read them: decimal units, as networks have them.

/// Not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a rate above zero in bits a second, like 100Mbit, 2.5Gbit or 64kbit")]
pub struct RateError;

const UNITS: [(&str, u64); 5] =
    [("Tbit", 1_000_000_000_000), ("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

/// Bits a second from `100Mbit`, `2.5Gbit`, `64kbit` or `1000bit`, whatever the case; the unit is needed, since
/// bits and bytes are easily taken for each other.
///
/// # Errors
/// For anything else, zero among it.
pub fn parse_bits_per_sec(text: &str) -> Result<u64, RateError> {
    let text = text.trim();
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().trim_end_matches("/s");
    let &(_, scale) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(RateError)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let of = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() };
    if whole.is_empty() && part.is_empty() || part.len() > 12 {
        return Err(RateError);
    }
    let tenths =
        u32::try_from(part.len()).ok().and_then(|length| 10u64.checked_pow(length)).ok_or(RateError)?;
    let part = u128::from(of(part).ok_or(RateError)?) * u128::from(scale) / u128::from(tenths);
    of(whole)
        .and_then(|whole| whole.checked_mul(scale))
        .and_then(|whole| whole.checked_add(u64::try_from(part).ok()?))
        .filter(|bits| *bits > 0)
        .ok_or(RateError)
}

/// `100 Mbit/s`, `2.5 Gbit/s`: one decimal at most.
pub fn bits_per_sec(bits: u64) -> String {
    let &(unit, scale) = UNITS.iter().find(|(_, scale)| bits >= *scale).unwrap_or(&UNITS[UNITS.len() - 1]);
    let tenths = (u128::from(bits) * 10 + u128::from(scale) / 2) / u128::from(scale);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}/s"),
        (whole, part) => format!("{whole}.{part} {unit}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_read_exactly() {
        for (text, bits) in [
            ("100Mbit", 100_000_000),
            ("2.5Gbit", 2_500_000_000),
            ("64kbit", 64_000),
            ("1 gbit/s", 1_000_000_000),
            ("9bit", 9),
            (".5kbit", 500),
        ] {
            assert_eq!(parse_bits_per_sec(text), Ok(bits), "{text}");
        }
        for text in
            ["", "0", "100", "0Mbit", "Mbit", "-1Mbit", "1MB", "1.2.3Mbit", "99999999999Tbit", "1Mbits"]
        {
            assert_eq!(parse_bits_per_sec(text), Err(RateError), "{text}");
        }
    }

    #[test]
    fn rates_are_written_shortly() {
        assert_eq!(bits_per_sec(0), "0 bit/s");
        assert_eq!(bits_per_sec(1_500), "1.5 kbit/s");
        assert_eq!(bits_per_sec(2_500_000_000), "2.5 Gbit/s");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,24}") {
            let _ = parse_bits_per_sec(&text);
        }

        #[test]
        fn whole_rates_come_back(megabits in 1u64..1_000_000) {
            prop_assert_eq!(parse_bits_per_sec(&format!("{megabits}Mbit")), Ok(megabits * 1_000_000));
        }
    }
}
