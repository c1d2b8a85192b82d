//! Link settings of the addon.

fn main() {
    napi_build::setup();
    // Its threads and thread-locals outlive the Node environment that loaded it: never unmapped.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
