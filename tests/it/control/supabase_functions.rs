//! What the edge functions share with this package.

/// The functions cannot read `Cargo.toml`, so the version is in a file of theirs.
#[test]
fn the_functions_have_the_version_of_the_package() {
    let file = include_str!("../../../supabase/functions/_shared/version.ts");
    let stated = format!("VERSION = \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(file.contains(&stated), "set {stated} in supabase/functions/_shared/version.ts");
}
