use lstm_wgpu::*;
fn main() {
    let t = std::time::Instant::now();
    match Wgpu::blocking() {
        Ok(w) => println!("{}: {:?}\n{}", w.adapter().name, w.arithmetic(), w.probe()),
        Err(e) => println!("error {e}"),
    }
    println!("{:?}", t.elapsed());
}
