#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| {
    bulkhead_image::fuzzing::layer(data);
});

// A header whose checksum is wrong ends the stream, so nearly no change would get further than that.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if seed % 8 != 0 {
        seal(&mut data[..size]);
    }
    size
});

const BLOCK: usize = 512;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Writes the right checksum into every header of the tar stream.
fn seal(stream: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = stream.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            at += BLOCK;
            continue;
        }
        header[CHECKSUM].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        at = at.saturating_add(BLOCK + content(&header[SIZE]).next_multiple_of(BLOCK));
    }
}

/// How many bytes follow a header; none where its size is no octal number.
fn content(size: &[u8]) -> usize {
    let digits: Vec<u8> = size.iter().copied().take_while(u8::is_ascii_digit).collect();
    std::str::from_utf8(&digits)
        .ok()
        .and_then(|digits| usize::from_str_radix(digits, 8).ok())
        .unwrap_or_default()
}
