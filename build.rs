//! Compiles `proto/` into `OUT_DIR` through protox, so that no `protoc` is needed, and keeps the
//! descriptor set for reflection and for the test that walks every RPC.

#[cfg(feature = "proto")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    compile()
}

#[cfg(not(feature = "proto"))]
fn main() {}

#[cfg(feature = "proto")]
fn compile() -> Result<(), Box<dyn std::error::Error>> {
    use std::path::PathBuf;

    const FILES: [&str; 3] = [
        "agentoperator/v1/types.proto",
        "agentoperator/v1/supervisor.proto",
        "agentoperator/v1/step.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(&out, protox::prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
