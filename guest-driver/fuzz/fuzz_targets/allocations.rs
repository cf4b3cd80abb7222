//! An allocator that ends the program where bytes of the disk make it ask for much memory at once.

use std::alloc::{GlobalAlloc, Layout, System};

/// More than any valid input of these targets needs.
const ALLOCATION_BYTES_MAX: usize = 64 << 20;

struct Limited;

#[global_allocator]
static LIMITED: Limited = Limited;

fn check(size_bytes: usize) {
    if size_bytes > ALLOCATION_BYTES_MAX {
        eprintln!("an allocation of {size_bytes} bytes");
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator with the same arguments; only the size is looked at.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        check(new_size);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}
