//! Types of plain integers and their C declarations, from one text.

/// Defines a type and, as its `C_DECLARATION`, the same type in C.
macro_rules! shared_with_c {
    (@c $name:ident u16) => { concat!("__u16 ", stringify!($name)) };
    (@c $name:ident u32) => { concat!("__u32 ", stringify!($name)) };
    (@c $name:ident u64) => { concat!("__u64 ", stringify!($name)) };
    (@c $name:ident [u8; $len:literal]) => { concat!("__u8 ", stringify!($name), "[", $len, "]") };
    (@c $name:ident [u32; $len:literal]) => { concat!("__u32 ", stringify!($name), "[", $len, "]") };
    (@c $name:ident [u64; $len:literal]) => { concat!("__u64 ", stringify!($name), "[", $len, "]") };
    (@c $name:ident [[u64; $inner:literal]; $len:literal]) => {
        concat!("__u64 ", stringify!($name), "[", $len, "][", $inner, "]")
    };
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident as $c_name:literal {
            $($(#[doc = $field_doc:literal])* pub $field:ident: $ty:tt,)+
        }
    ) => {
        $(#[doc = $doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name {
            $($(#[doc = $field_doc])* pub $field: $ty,)+
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())+, "padding");

        impl $name {
            /// The same type in C.
            pub(crate) const C_DECLARATION: &str = concat!(
                "struct ", $c_name, " {\n",
                $("\t", $crate::c::shared_with_c!(@c $field $ty), ";\n",)+
                "};\n",
            );
        }
    };
}

pub(crate) use shared_with_c;
