//! Type information that the kernel takes.
//!
//! With it the kernel knows which functions of a program are global: those it verifies once, by what their signature
//! says, instead of once for each way that leads to a call. LLVM derives it from the debug information of rustc, which
//! names types as Rust does and lists fields as they were declared; the kernel wants identifiers of C, and fields in
//! the order of memory. Both are mended in place, so nothing moves. Format: Documentation/bpf/btf.rst.

use object::{Object as _, ObjectSection as _};

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;

/// `BTF_KIND_..` of linux/btf.h, as far as they matter here.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// Mends the type information in this object. Without any, or where it is not as expected, an error: programs would
/// load, but take the kernel thirty times as long.
pub(crate) fn mend(elf: &mut [u8]) -> Result<(), String> {
    let file = object::File::parse(&*elf).map_err(|e| format!("the BPF object: {e}"))?;
    let section = file.section_by_name(".BTF").and_then(|section| section.file_range());
    let (start, bytes) = section.ok_or("the BPF object has no type information")?;
    let range = usize::try_from(start).ok().zip(usize::try_from(start + bytes).ok());
    let btf = range.and_then(|(start, end)| elf.get_mut(start..end));
    let btf = btf.ok_or("the BPF object ends within its type information")?;
    Btf::of(btf).and_then(Btf::mend).ok_or_else(|| "the BPF object's type information is damaged".to_owned())
}

struct Btf<'a> {
    types: &'a mut [u8],
    strings: &'a mut [u8],
}

impl<'a> Btf<'a> {
    fn of(bytes: &'a mut [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.first_chunk().copied()?) != MAGIC {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let [types, types_len, strings, strings_len] =
            [8, 12, 16, 20].map(|at| word(bytes, at).map(|w| w as usize));
        let [types, strings] = bytes
            .get_disjoint_mut([
                header + types?..header + types? + types_len?,
                header + strings?..header + strings? + strings_len?,
            ])
            .ok()?;
        Some(Self { types, strings })
    }

    fn mend(mut self) -> Option<()> {
        let mut at = 0;
        while at < self.types.len() {
            let (name, info) = (word(self.types, at)?, word(self.types, at + 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            // Names of sections have dots.
            if kind != kind::DATASEC {
                self.rename(name)?;
            }
            at += TYPE_BYTES;
            let item_bytes = item_bytes(kind);
            let items = self.types.get_mut(at..at + count * item_bytes)?;
            if kind == kind::STRUCT {
                sort_by_offset(items);
            }
            if matches!(kind, kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FUNC_PROTO) {
                for item in 0..count {
                    self.rename(word(self.types, at + item * item_bytes)?)?;
                }
            }
            at += count * item_bytes + tail_bytes(kind);
        }
        Some(())
    }

    /// Makes the string at this offset an identifier of C, or leaves it empty.
    fn rename(&mut self, offset: u32) -> Option<()> {
        let string = self.strings.get_mut(offset as usize..)?;
        let length = string.iter().position(|&byte| byte == 0)?;
        for (index, byte) in string[..length].iter_mut().enumerate() {
            let fits = byte.is_ascii_alphabetic() || *byte == b'_' || index > 0 && byte.is_ascii_digit();
            if !fits {
                *byte = b'_';
            }
        }
        Some(())
    }
}

/// What follows a type for each of its members, values, parameters or variables.
fn item_bytes(kind: u32) -> usize {
    match kind {
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12,
        kind::ENUM | kind::FUNC_PROTO => 8,
        _ => 0,
    }
}

/// What follows a type once.
fn tail_bytes(kind: u32) -> usize {
    match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        _ => 0,
    }
}

/// Members: name, type, offset.
fn sort_by_offset(members: &mut [u8]) {
    let (members, _) = members.as_chunks_mut::<12>();
    members.sort_by_key(|member| word(member, 8));
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}
