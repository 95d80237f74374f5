/* Writes a data set of 1000 numbers into the file named by its argument, reads it back and compares. */
#include <hdf5.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    static int out[1000], in[1000];
    const char *name = argc > 1 ? argv[1] : "/tmp/hello.h5";
    hsize_t size = 1000;
    hid_t file = H5Fcreate(name, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, &size, NULL);
    hid_t set = H5Dcreate2(file, "squares", H5T_NATIVE_INT, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);

    for (int i = 0; i < 1000; i++)
        out[i] = i * i;
    if (H5Dwrite(set, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0)
        return 1;
    if (H5Dread(set, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, in) < 0)
        return 1;
    H5Dclose(set);
    H5Sclose(space);
    H5Fclose(file);
    for (int i = 0; i < 1000; i++)
        if (in[i] != out[i])
            return 1;
    printf("%s: 1000 squares written and read\n", name);
    return 0;
}
