// Runs the CPU kernels without Python, on inputs that are the same on every processor, and writes all results.
//
// For each array: a line "NAME COUNT", then COUNT doubles as they are in memory. Every operator runs in float and in
// double on the same inputs, so that the double results are the reference of the float results.
#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/event_synthesis.h"
#include "cpu/kalman_scan.h"
#include "cpu/precision_fusion.h"

namespace {

constexpr int64_t batch = 3, steps = 21, dim = 77, rows = batch * steps;  // an odd width: vectors and what remains
constexpr int64_t lengths[batch] = {21, 0, 13};

// Multiples of 2^-16, which float holds exactly, in [low, low + 2^bits).
class Numbers {
  public:
    explicit Numbers(uint64_t seed) : state(seed) {}
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state >> 40);
    }
    template <class T>
    std::vector<T> draw(int64_t count, double low, int bits) {
        std::vector<T> values(count);
        for (T& value : values) value = T(low + (next() & ((1u << (16 + bits)) - 1)) / 65536.0);
        return values;
    }

  private:
    uint64_t state;
};

template <class T>
void write(const std::string& name, const std::vector<T>& values) {
    std::printf("%s %zu\n", name.c_str(), values.size());
    for (T value : values) {
        const double wide = double(value);
        std::fwrite(&wide, sizeof wide, 1, stdout);
    }
}

template <class T>
void scan(const std::string& name, bool robust) {
    Numbers numbers(1);
    const auto x = numbers.draw<T>(rows * dim, -2, 2), var = numbers.draw<T>(rows * dim, 0.125, 1);
    const auto q = numbers.draw<T>(dim, 0.0625, -1), s0 = numbers.draw<T>(batch * dim, -1, 1);
    const auto p0 = numbers.draw<T>(batch * dim, 0.5, 0);
    const T influence = T(0.125);
    ief::ScanInputs<T> in{};
    in.x = x.data(), in.var = var.data(), in.lengths = lengths, in.q = q.data();
    in.influence = robust ? &influence : nullptr;
    in.s0 = s0.data(), in.p0 = p0.data();
    in.eps = T(1e-8), in.diffuse = T(1e6), in.batch = batch, in.steps = steps, in.dim = dim, in.threads = 1;
    std::vector<T> mean(rows * dim), variance(rows * dim), gain(rows * dim), s(batch * dim), p(batch * dim);
    ief::ScanOutputs<T> out{};
    out.mean = mean.data(), out.var = variance.data(), out.gain = gain.data(), out.s = s.data(), out.p = p.data();
    IEF_SELECT(scan_forward<T>)(in, out);

    const auto a = numbers.draw<T>(rows * dim, -1, 1), b = numbers.draw<T>(rows * dim, -1, 1);
    const auto c = numbers.draw<T>(rows * dim, -1, 1);
    std::vector<T> grad_x(rows * dim), grad_var(rows * dim), grad_s0(batch * dim), grad_p0(batch * dim), grad_q(dim);
    std::vector<T> grad_influence(1);
    std::vector<double> partial(2 * batch * dim);
    ief::ScanGradients<T> g{};
    g.mean = mean.data(), g.var = variance.data();
    g.grad_mean = a.data(), g.grad_variance = b.data(), g.grad_gain = c.data();
    g.grad_x = grad_x.data(), g.grad_var = grad_var.data(), g.grad_s0 = grad_s0.data(), g.grad_p0 = grad_p0.data();
    g.partial = partial.data(), g.grad_q = grad_q.data(), g.grad_influence = grad_influence.data();
    IEF_SELECT(scan_backward<T>)(in, g);
    write(name + ".mean", mean), write(name + ".var", variance), write(name + ".gain", gain);
    write(name + ".s", s), write(name + ".p", p), write(name + ".grad_x", grad_x), write(name + ".grad_var", grad_var);
    write(name + ".grad_s0", grad_s0), write(name + ".grad_p0", grad_p0), write(name + ".grad_q", grad_q);
    if (robust) write(name + ".grad_influence", grad_influence);
}

template <class T>
void fusion(const std::string& name) {
    Numbers numbers(2);
    const auto mu_img = numbers.draw<T>(rows * dim, -2, 2), logvar_img = numbers.draw<T>(rows * dim, -4, 3);
    const auto mu_evt = numbers.draw<T>(rows * dim, -2, 2), logvar_evt = numbers.draw<T>(rows * dim, -4, 3);
    const auto c_img = numbers.draw<T>(dim, 0.5, -2), c_evt = numbers.draw<T>(dim, 0.5, -2);
    ief::FusionInputs<T> in{};
    in.mu_img = mu_img.data(), in.logvar_img = logvar_img.data();
    in.mu_evt = mu_evt.data(), in.logvar_evt = logvar_evt.data();
    in.c_img = c_img.data(), in.c_evt = c_evt.data(), in.lengths = lengths;
    in.rows = rows, in.steps = steps, in.dim = dim, in.eps = T(1e-8), in.limit = T(80), in.threads = 1;
    std::vector<T> mean(rows * dim), var(rows * dim), w_img(rows * dim), w_evt(rows * dim), terms(4);
    std::vector<double> sums(4 * rows);
    ief::FusionOutputs<T> out{};
    out.mean = mean.data(), out.var = var.data(), out.w_img = w_img.data(), out.w_evt = w_evt.data();
    out.partial = sums.data(), out.terms = terms.data();
    IEF_SELECT(fusion_forward<T>)(in, out);

    const auto a = numbers.draw<T>(rows * dim, -1, 1), b = numbers.draw<T>(rows * dim, -1, 1);
    const auto d = numbers.draw<T>(rows * dim, -1, 1), e = numbers.draw<T>(rows * dim, -1, 1);
    const auto grad_terms = numbers.draw<T>(4, -1, 1);
    const std::vector<T> zeros(dim);
    std::vector<T> grads[4], partial(ief::fusion_blocks * 2 * dim), grad_c_img(dim), grad_c_evt(dim);
    for (auto& grad : grads) grad.resize(rows * dim);
    ief::FusionGradients<T> g{};
    g.grad_mean = a.data(), g.grad_var = b.data(), g.grad_w_img = d.data(), g.grad_w_evt = e.data();
    g.grad_terms = grad_terms.data(), g.zeros = zeros.data(), g.partial = partial.data();
    g.grad_mu_img = grads[0].data(), g.grad_logvar_img = grads[1].data();
    g.grad_mu_evt = grads[2].data(), g.grad_logvar_evt = grads[3].data();
    g.grad_c_img = grad_c_img.data(), g.grad_c_evt = grad_c_evt.data();
    IEF_SELECT(fusion_backward<T>)(in, g);
    write(name + ".mean", mean), write(name + ".var", var), write(name + ".w_img", w_img), write(name + ".w_evt", w_evt);
    write(name + ".terms", terms), write(name + ".grad_c_img", grad_c_img), write(name + ".grad_c_evt", grad_c_evt);
    for (int k = 0; k < 4; ++k) write(name + ".grad_" + std::to_string(k), grads[k]);
}

template <class Pixel>
void events(const std::string& name) {
    constexpr int64_t segments = 2, frames = 5, height = 9, width = 83, channels = 3;
    constexpr int64_t row = width * channels, frame = height * row, pixels = height * width;
    Numbers numbers(3);
    std::vector<Pixel> data(segments * frames * frame);
    for (Pixel& value : data) value = Pixel(numbers.next() & 255);
    const ief::EventFrames there{data.data(), frames * frame, frame, row, nullptr, 0, 0, segments, frames, height, width,
                                 channels};
    const ief::EventRule rule{400000, 3, true};
    using Map = typename std::conditional<std::is_same<Pixel, uint8_t>::value, float, Pixel>::type;
    std::vector<Map> maps(2 * segments * pixels);
    std::vector<int32_t> peaks(segments);
    IEF_SELECT(event_forward<Pixel, Map>)(there, rule, Map(3), maps.data(), peaks.data(), 1);
    write(name + ".maps", maps), write(name + ".peaks", peaks);
    if constexpr (!std::is_same<Pixel, uint8_t>::value) {
        const auto grad = numbers.draw<Pixel>(2 * segments * pixels, -1, 1);
        const std::vector<Pixel> scale(1, Pixel(3));
        std::vector<Pixel> grad_frames(data.size());
        IEF_SELECT(event_backward<Pixel>)
        (there, rule, Pixel(10), grad.data(), scale.data(), 0, grad_frames.data(), nullptr, 1);
        write(name + ".grad_frames", grad_frames);
    }
}

}  // namespace

int main() {
    scan<float>("scan.float", false), scan<double>("scan.double", false);
    scan<float>("robust.float", true), scan<double>("robust.double", true);
    fusion<float>("fusion.float"), fusion<double>("fusion.double");
    events<uint8_t>("events.uint8"), events<float>("events.float"), events<double>("events.double");
    return 0;
}
