//! Rebuilds the library when a file that it embeds changes or is added, which
//! the macro that embeds whole directories cannot say by itself.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=supabase/migrations");
    println!("cargo::rerun-if-changed=supabase/functions");
    println!("cargo::rerun-if-changed=supabase/config.toml");
}
