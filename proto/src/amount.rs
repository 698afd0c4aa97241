//! Amounts of CPU and bytes, as people read them.

/// `0.5`, `2`: CPUs, for where the unit is clear.
pub fn cpu_number(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `128 MiB`, `1.5 GiB`, `900 B`: one decimal at most, in powers of 1024.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scale: u128 = 1;
    let wide = u128::from(bytes);
    while unit + 1 < UNITS.len() && wide >= scale * 1024 {
        scale *= 1024;
        unit += 1;
    }
    let tenths = (wide * 10 + scale / 2) / scale;
    let name = UNITS[unit];
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {name}"),
        (whole, part) => format!("{whole}.{part} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_one_decimal_at_most() {
        assert_eq!([0, 500, 1000, 1234].map(cpu_number), ["0", "0.5", "1", "1.234"]);
        let sizes = [0, 900, 128 << 20, 3 << 29, u64::MAX];
        assert_eq!(sizes.map(size), ["0 B", "900 B", "128 MiB", "1.5 GiB", "16384 PiB"]);
    }
}
