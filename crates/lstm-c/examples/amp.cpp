// Plays a recording through a model of a guitar amp, as an audio plug-in does, in blocks of 64 samples. Prints how long
// the slowest block took, and how long it may take.
//
//     c++ -std=c++17 amp.cpp $(pkg-config --cflags --libs lstm) -o amp && ./amp MODEL IN.wav OUT.wav
//
// MODEL is a file of NAM, AIDA-X, GuitarML or another supported format with one input and one output. IN.wav has 16-bit
// or float samples; its first channel is used. Without IN.wav, a test tone is played.
#include <lstm.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr std::size_t block_size = 64;

struct Recording {
    std::uint32_t rate = 48000;
    std::vector<float> samples;
};

void check(LstmStatus status, const char *what) {
    if (status != LSTM_STATUS_OK) {
        throw std::runtime_error(std::string(what) + ": " + lstm_last_error());
    }
}

template <typename T> T little_endian(const std::string &bytes, std::size_t at) {
    if (at + sizeof(T) > bytes.size()) {
        throw std::runtime_error("the recording ends early");
    }
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

Recording read_wav(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    if (!file || bytes.size() < 12 || bytes.compare(0, 4, "RIFF") != 0 || bytes.compare(8, 4, "WAVE") != 0) {
        throw std::runtime_error(path + ": expected a WAV file");
    }
    Recording recording;
    std::uint16_t format = 0, channels = 0, bits = 0;
    for (std::size_t at = 12; at + 8 <= bytes.size();) {
        const auto name = bytes.substr(at, 4);
        const std::size_t size = little_endian<std::uint32_t>(bytes, at + 4);
        at += 8;
        if (name == "fmt ") {
            format = little_endian<std::uint16_t>(bytes, at);
            channels = little_endian<std::uint16_t>(bytes, at + 2);
            recording.rate = little_endian<std::uint32_t>(bytes, at + 4);
            bits = little_endian<std::uint16_t>(bytes, at + 14);
        } else if (name == "data") {
            const bool is_float = format == 3 && bits == 32;
            if (channels == 0 || !(is_float || (format == 1 && bits == 16))) {
                throw std::runtime_error(path + ": expected 16-bit integers or 32-bit floats");
            }
            const std::size_t frame = channels * bits / 8u;
            const std::size_t end = std::min(at + size, bytes.size());
            for (std::size_t k = at; k + frame <= end; k += frame) {
                recording.samples.push_back(is_float ? little_endian<float>(bytes, k)
                                                     : little_endian<std::int16_t>(bytes, k) / 32768.0f);
            }
            return recording;
        }
        at += size + size % 2;
    }
    throw std::runtime_error(path + ": no samples");
}

void write_wav(const std::string &path, const Recording &recording) {
    std::ofstream file(path, std::ios::binary);
    const auto put = [&](auto value) { file.write(reinterpret_cast<const char *>(&value), sizeof value); };
    const auto size = static_cast<std::uint32_t>(recording.samples.size() * sizeof(float));
    file << "RIFF";
    put(std::uint32_t{36 + size});
    file << "WAVEfmt ";
    put(std::uint32_t{16});
    put(std::uint16_t{3}); // float
    put(std::uint16_t{1}); // one channel
    put(recording.rate);
    put(std::uint32_t{recording.rate * 4});
    put(std::uint16_t{4});
    put(std::uint16_t{32});
    file << "data";
    put(size);
    file.write(reinterpret_cast<const char *>(recording.samples.data()), size);
    if (!file.flush()) {
        throw std::runtime_error(path + ": can't be written");
    }
}

Recording test_tone() {
    Recording recording;
    for (std::size_t k = 0; k < 2 * recording.rate; k++) {
        const double time = static_cast<double>(k) / recording.rate;
        recording.samples.push_back(static_cast<float>(0.5 * std::exp(-2.0 * time) * std::sin(690.0 * time)));
    }
    return recording;
}

int run(int argc, char **argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: amp MODEL [IN.wav [OUT.wav]]\n");
        return 2;
    }
    LstmModel *opened = nullptr;
    check(lstm_model_open(argv[1], nullptr, &opened), "open");
    const std::unique_ptr<LstmModel, decltype(&lstm_model_destroy)> model(opened, lstm_model_destroy);
    if (lstm_model_input_size(opened) != 1 || lstm_model_output_size(opened) != 1 || lstm_model_reads_tokens(opened)) {
        throw std::runtime_error("expected a model with one input and one output");
    }
    Recording recording = argc > 2 ? read_wav(argv[2]) : test_tone();
    const char *rate = lstm_model_metadata(opened, "sample_rate");
    if (rate != nullptr && std::atof(rate) != recording.rate) {
        throw std::runtime_error("the model is for " + std::string(rate) + " Hz, the recording has " +
                                 std::to_string(recording.rate));
    }
    LstmStream *created = nullptr;
    check(lstm_stream_create(opened, 1, &created), "stream");
    const std::unique_ptr<LstmStream, decltype(&lstm_stream_destroy)> stream(created, lstm_stream_destroy);

    // From here to the end of the loop nothing allocates, locks or enters the operating system.
    using clock = std::chrono::steady_clock;
    float output[block_size];
    double worst = 0.0;
    for (std::size_t k = 0; k < recording.samples.size(); k += block_size) {
        const std::size_t steps = std::min(block_size, recording.samples.size() - k);
        const auto start = clock::now();
        if (lstm_stream_run(created, &recording.samples[k], output, steps) != LSTM_STATUS_OK) {
            throw std::runtime_error("the stream failed");
        }
        worst = std::max(worst, std::chrono::duration<double, std::micro>(clock::now() - start).count());
        std::copy_n(output, steps, &recording.samples[k]);
    }
    if (argc > 3) {
        write_wav(argv[3], recording);
    }
    std::printf("%zu samples at %u Hz; the slowest block of %zu took %.1f us of %.1f us\n", recording.samples.size(),
                static_cast<unsigned>(recording.rate), block_size, worst, 1e6 * block_size / recording.rate);
    return 0;
}

} // namespace

int main(int argc, char **argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
